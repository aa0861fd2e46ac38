"""Loss logs as text: `losses/<run>.txt`, `test_losses/<run>.txt`, one line an epoch, for people and for `compare`;
and `losses/<run>.jsonl`, one line a step, for machines."""

import json
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import InputError
from common.files import write_atomically

_LINE = re.compile(
    r"^\s*(?:Epoch\s+(?P<epoch>\d+)\s*[-:,]\s*)?Avg Loss:\s*(?P<mean>\S+)\s+Losses\s*-\s*\[(?P<losses>.*)\]\s*$"
)


@dataclass(frozen=True)
class EpochLoss:
    """One line of a log: the epoch (from 1; None if the log does not say), the mean over pairs, every step's loss."""

    epoch: int | None
    mean: float
    losses: list[float]

    def __str__(self) -> str:
        epoch = "" if self.epoch is None else f"Epoch {self.epoch} - "
        return f"{epoch}Avg Loss: {self.mean!r} Losses - {self.losses!r}"


def mean_over_pairs(losses: list[float], pairs: list[int]) -> float:
    """The mean of the steps' losses, each weighted with the pairs in its batch (the last may hold fewer)."""
    return math.fsum(loss * n for loss, n in zip(losses, pairs, strict=True)) / sum(pairs)


def append_line(path: Path, line: EpochLoss) -> None:
    """Add one line, whole and on the disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    _write(path, [*lines, str(line)])


def cut_after(path: Path, epoch: int) -> None:
    """Drop the lines of later epochs: what a resumed run is about to write again."""
    if path.exists():
        _write(path, [str(line) for line in read_losses(path) if line.epoch is not None and line.epoch <= epoch])


def read_losses(path: str | Path) -> list[EpochLoss]:
    """Read a log of this workspace, or of the public replications, whose numbers may be wrapped as `tensor(0.5)`."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no loss log {path}; a run writes one to losses/<run>.txt")
    found = []
    for number, text in enumerate(path.read_text(errors="replace").splitlines(), 1):
        if not text.strip():
            continue
        match = _LINE.match(text)
        if not match:
            raise InputError(
                f"{path}, line {number}: {text[:60]!r} is not of the form 'Epoch n - Avg Loss: x Losses - [l1, l2, …]'"
            )
        bare = re.sub(r"[A-Za-z_][\w.]*\(|\)|(?:device|dtype|grad_fn)=[^,\]]*", "", match["losses"])
        try:
            losses = [float(x) for x in bare.split(",") if x.strip()]
            mean = float(re.sub(r"[A-Za-z_][\w.]*\(|\)", "", match["mean"]))
        except ValueError as error:
            raise InputError(f"{path}, line {number}: {error}; the losses must be numbers") from None
        found.append(EpochLoss(int(match["epoch"]) if match["epoch"] else None, mean, losses))
    return found


def _write(path: Path, lines: list[str]) -> None:
    write_atomically(path, lambda file: file.write("".join(f"{line}\n" for line in lines).encode()))


class StepLog:
    """`losses/<run>.jsonl`: one JSON object a step, for machines; the end of an epoch has a line of its own.

    A line has `step` (from 1), `epoch`, `loss`, `lr`, `grad_norm`, `pairs_per_second`, `waiting` (share of the time
    in which the loader was waited for) and `memory_mib`; `skipped` where a step was left out. That of an epoch has
    `epoch_loss`, and what was validated and scored. Lines are on the disk when `flush` returns.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115  # a line at a time; closed by `close`

    def write(self, **values: Any) -> None:
        """Add one line; numbers that JSON does not know (nan, inf) as strings."""
        plain = {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        self._file.write(json.dumps(plain) + "\n")

    def flush(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def cut_steps_after(path: Path, step: int, epoch: int) -> None:
    """Drop the lines of later steps, the ends of later epochs, and a last line that was cut off: what a resumed run is
    about to write again."""
    if path.exists():
        kept = [
            text
            for text, record in _records(path)
            if record["step"] <= step and ("epoch_loss" not in record or record["epoch"] <= epoch)
        ]
        write_atomically(path, lambda file: file.write("".join(f"{text}\n" for text in kept).encode()))


def read_steps(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a `losses/<run>.jsonl`."""
    if not Path(path).is_file():
        raise InputError(f"there is no log of steps {path}; a run writes one to losses/<run>.jsonl")
    return [record for _, record in _records(Path(path))]


def _records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(text)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            yield text, record
