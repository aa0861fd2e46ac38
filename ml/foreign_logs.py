"""Loss logs of other people, to be put beside ours: what public replications leave behind, read without their code.

Text: this workspace's lines, a list of numbers, or one number a line. JSON lines: MAE's `log.txt` and its descendants.
CSV: an export of Weights & Biases, or any table with a column of steps or epochs. TensorBoard: its event files.
"""

import csv
import json
import logging
import math
import re
from collections import defaultdict
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

from common.errors import InputError
from common.files import read_text
from ml.logs import read_losses

EVENTS = "events.out.tfevents."
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|nan|inf", re.IGNORECASE)


@dataclass
class Curve:
    """One quantity over a run: values beside the steps or the epochs (or both) at which they were taken."""

    metric: str
    """loss, validation loss, learning rate, or the name that the log has for it"""
    values: list[float] = field(default_factory=list)
    steps: list[float] | None = None
    epochs: list[float] | None = None


def read_log(path: str | Path) -> dict[str, list[Curve]]:
    """The curves of a log by the name of their run: a file, or a folder of TensorBoard's event files.

    Raises InputError for a file in which no such curve is found.
    """
    path = Path(path)
    if path.is_dir() or path.name.startswith(EVENTS):
        found = {path.name if path.is_dir() else path.parent.name: _events(path)}
    elif not path.is_file():
        raise InputError(f"there is no log {path}; give a text list of losses, a CSV export or TensorBoard's events")
    elif path.suffix == ".csv":
        found = _table(path)
    else:
        name = path.parent.name if path.name == "log.txt" else path.stem
        found = {name: _json_lines(path) or _lines(path)}
    found = {name: [curve for curve in curves if curve.values] for name, curves in found.items()}
    if not any(found.values()):
        raise InputError(
            f"{path} holds no curve: expected lines 'Avg Loss: x Losses - [l1, l2, …]', a list of numbers, JSON lines "
            "with train_loss, a CSV with a column Step, or TensorBoard's events"
        )
    return {name: curves for name, curves in found.items() if curves}


def metric_name(name: str) -> str:
    """What a curve of another name is here: losses and rates are called in many ways."""
    words = set(re.split(r"[^a-z]+", name.lower()))
    held_out = bool(words & {"val", "validation", "test", "eval", "valid"})
    if words & {"lr", "learningrate"} or {"learning", "rate"} <= words:
        return "learning rate"
    if (
        "loss" in words
        and not held_out
        and not words - {"loss", "train", "training", "avg", "epoch", "step", "mean", ""}
    ):
        return "loss"
    if "loss" in words and held_out:
        return "validation loss"
    return name


def _lines(path: Path) -> list[Curve]:
    """Lines with an epoch's losses each, of this workspace or of a replication; or bare numbers."""
    text = read_text(path)
    if "Avg Loss" in text:
        return curves_of_lines(path)
    bare = re.sub(r"tensor\(|\)|[\[\],;]|(?:device|dtype|grad_fn)=\S*", " ", text)
    words = bare.split()
    if not words or any(not _NUMBER.fullmatch(word) for word in words):
        return []
    values = [float(word) for word in words]
    return [Curve("loss", values, steps=[float(n) for n in range(1, len(values) + 1)])]


def curves_of_lines(path: Path) -> list[Curve]:
    """The losses of all steps of a text log, and the mean of each epoch."""
    steps: list[tuple[float, float, float]] = []  # loss, step, epoch
    means: list[tuple[float, float, float]] = []
    for number, line in enumerate(read_losses(path), 1):
        epoch, done = line.epoch or number, len(steps)
        count = len(line.losses)
        steps += [(loss, done + k, epoch - 1 + k / count) for k, loss in enumerate(line.losses, 1)]
        means.append((line.mean, len(steps), epoch))
    return [
        Curve(metric, [y for y, _, _ in points], [step for _, step, _ in points], [epoch for _, _, epoch in points])
        for metric, points in (("loss", steps), ("mean loss of an epoch", means))
    ]


def _json_lines(path: Path) -> list[Curve]:
    """Lines such as {"train_lr": …, "train_loss": …, "epoch": 3}, epochs from 0; or with a step, which then counts."""
    curves: dict[tuple[str, str], Curve] = {}
    places: dict[tuple[str, str], list[float]] = defaultdict(list)
    for text in read_text(path).splitlines():
        try:
            record = json.loads(text)
        except ValueError:
            continue
        axis = next((axis for axis in ("step", "epoch") if isinstance(record, dict) and axis in record), None)
        if axis is None or not isinstance(record[axis], (int, float)):
            continue
        for key, value in record.items():
            if key in ("step", "epoch") or isinstance(value, bool) or not isinstance(value, (int, float)):
                continue
            curve = curves.setdefault((axis, key), Curve(metric_name(key)))
            curve.values.append(float(value))
            places[axis, key].append(record[axis] + (axis == "epoch"))
    for (axis, key), curve in curves.items():
        curve.steps, curve.epochs = (places[axis, key] if axis == name else None for name in ("step", "epoch"))
    return list(curves.values())


def _table(path: Path) -> dict[str, list[Curve]]:
    """A CSV with a header: W&B's "Step", "<run> - <metric>" and its __MIN and __MAX; or "epoch", "loss", …"""
    rows = list(csv.reader(StringIO(read_text(path))))
    header = [name.strip() for name in rows[0]] if rows else []
    axes = {name.lower().removeprefix("trainer/"): k for k, name in enumerate(header)}
    at = next((axes[name] for name in ("step", "global_step", "_step", "epoch") if name in axes), None)
    if at is None:
        return {}
    by_epoch = header[at].lower() == "epoch"
    found: dict[str, list[Curve]] = {}
    for k, name in enumerate(header):
        if (
            k == at
            or name.endswith(("__MIN", "__MAX"))
            or name.lower() in ("epoch", "wall time", "walltime", "runtime")
        ):
            continue
        run, _, metric = name.rpartition(" - ")
        metric = "loss" if metric.lower() == "value" else metric  # TensorBoard's own CSV
        points = [(_float(row[at]), _float(row[k])) for row in rows[1:] if len(row) > max(at, k)]
        points = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
        curve = Curve(metric_name(metric), [y for _, y in points])
        if by_epoch:
            curve.epochs = [x for x, _ in points]
        else:
            curve.steps = [x for x, _ in points]
        found.setdefault(run or path.stem, []).append(curve)
    return found


def _events(path: Path) -> list[Curve]:
    """All scalars of TensorBoard's event files, of a file or of a folder."""
    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    if path.is_dir() and not any(path.glob(f"{EVENTS}*")):
        return []
    events: Any = EventAccumulator(str(path), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    curves = []
    for tag in events.Tags()["scalars"]:
        found = events.Scalars(tag)
        curves.append(Curve(metric_name(tag), [e.value for e in found], [float(e.step) for e in found]))
    for tag in events.Tags()["tensors"]:  # how TensorFlow 2 writes scalars
        kept = [(e.step, make_ndarray(e.tensor_proto)) for e in events.Tensors(tag)]
        scalars = [(float(step), float(value)) for step, value in kept if value.size == 1 and value.dtype.kind == "f"]
        curves.append(Curve(metric_name(tag), [value for _, value in scalars], [step for step, _ in scalars]))
    return curves


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
