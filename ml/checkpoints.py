"""Checkpoints: a dict of tensors and plain values, written whole or not at all, read without unpickling code.

`checkpoints/<run>/` holds `last.pt`, the one before it as `previous.pt`, `<epoch>.pt` of every n-th epoch, and
`best.pt` where there is validation. Each of them has
    model      state dict                       config     the model's, for `build_model`
    optimizer  by parameter: what AdamW keeps   run        the run's name
    averaged   averaged weights, or {}          settings   what decides the numbers of the run
    epoch      finished epochs                  step       finished updates
    position   updates of the running epoch     losses     of those, or of the last epoch if it has just ended
    random     states of torch's generator      threads    of the CPU, on which its sums depend
    rewound    file that it was last rewound to, if any
Each record of the file carries a checksum (CRC-32), which is compared before anything is used. `last.pt` is written
first, so that `<epochs>.pt` says that a run is finished. A `last.pt` that is damaged is kept as `damaged.pt`.
"""

import errno
import itertools
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from common.errors import InputError
from common.files import write_atomically
from mae.reading import read_checkpoint
from mae.weights import load_strictly
from ml.SiamMAE import Model, build_model

LAST, PREVIOUS, BEST = "last.pt", "previous.pt", "best.pt"
FORMAT = 3  # what a resume understands; the weights of every format can be loaded


def save_checkpoint(path: Path, checkpoint: dict[str, Any]) -> None:
    """Write to a temporary name, flush, rename; then `path` is the whole checkpoint or what it was before."""
    write_atomically(path, lambda file: torch.save(checkpoint, file))


def save_last(folder: Path, checkpoint: dict[str, Any]) -> None:
    """Write `last.pt`, and keep the one before, which must be whole, as `previous.pt`: at every moment one of them is
    whole. The new one is on the disk before anything is renamed."""
    last = folder / LAST

    def write(file: Any) -> None:
        torch.save(checkpoint, file)
        file.flush()
        os.fsync(file.fileno())
        if last.exists():
            os.replace(last, folder / PREVIOUS)

    write_atomically(last, write)


def save_config(path: Path, config: dict[str, Any]) -> None:
    """The configuration as JSON, beside the weights."""
    write_atomically(path, lambda file: file.write(json.dumps(config, indent=2, default=str).encode() + b"\n"))


def find_checkpoint(name: str | Path, root: Path = Path()) -> Path:
    """A checkpoint by its path, by its run (`last.pt`), or by `<run>/<epoch>`."""
    folder = root / "checkpoints"
    for candidate in (Path(name), folder / name, folder / f"{name}.pt"):
        if candidate.is_file():
            return candidate
        for file in (candidate / LAST, candidate / PREVIOUS):
            if file.is_file():
                return file
    runs = sorted({p.parent.name for name in (LAST, PREVIOUS) for p in folder.glob(f"*/{name}")})
    there = f"there are the runs {', '.join(runs)}" if runs else f"there are no runs in {folder} yet"
    raise InputError(f"no checkpoint {name}: expected a file, a run, or <run>/<epoch>; {there}")


def load_run(path: Path) -> dict[str, Any]:
    """Read a checkpoint of this workspace; an InputError names what is missing, or that it is damaged."""
    checkpoint = read_checkpoint(path)
    missing = {"model", "config", "epoch"} - checkpoint.keys()
    if missing:
        raise InputError(
            f"{path} is not a checkpoint of this workspace: it lacks {', '.join(sorted(missing))}; "
            "for MAE weights use prepare_model"
        )
    check_whole(path)
    return checkpoint


def check_whole(path: Path) -> None:
    """Compare the checksums of all records of a file that torch wrote; an InputError if one differs."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError) as error:
        raise InputError(f"{path} is damaged ({error}): use an earlier checkpoint") from error
    if damaged:
        raise InputError(f"{path} is damaged: the checksum of {damaged} differs; use an earlier checkpoint")


def numbered(folder: Path) -> list[Path]:
    """The `<epoch>.pt` of a run, in their order."""
    return sorted((path for path in folder.glob("*.pt") if path.stem.isdecimal()), key=lambda path: int(path.stem))


def newest_whole(folder: Path, say: Callable[[str], None] = print) -> tuple[Path, dict[str, Any]] | None:
    """The newest undamaged checkpoint to resume a run from, or None; damaged ones are named."""

    def first(paths: Iterable[Path]) -> list[tuple[Path, dict[str, Any]]]:
        for path in paths:
            try:
                return [(path, load_run(path))]
            except InputError as error:
                say(str(error))
        return []

    last, previous = ([path for path in (folder / name,) if path.is_file()] for name in (LAST, PREVIOUS))
    found = first(last) or first(previous) + first(reversed(numbered(folder)))
    chosen = max(found, key=lambda pair: pair[1].get("step", 0), default=None)
    if chosen and last and chosen[0] != last[0]:
        say(f"going on from {chosen[0]} instead, after {chosen[1].get('step', 0)} steps")
    return chosen


def free_name(path: Path) -> Path:
    """The path, or the first of `<name>_2`, `<name>_3`, … at which there is nothing yet."""
    names = itertools.chain([path], (path.with_stem(f"{path.stem}_{k}") for k in itertools.count(2)))
    return next(name for name in names if not name.exists())


def rewind(folder: Path, path: Path, checkpoint: dict[str, Any], logs: dict[str, Path]) -> Path:
    """Make an earlier checkpoint of a run its `last.pt`; what is later is kept in a folder of its own, with the logs as
    they are now, by the names that they are to have there.

    At every moment the run can resume correctly, from where it was or from the checkpoint: the new `last.pt`, whose
    `rewound` says what it is, takes the old one's place when all else is done.
    """
    aside = free_name(folder / "before_rewind")
    aside.mkdir()
    for file in folder.glob("*.pt"):
        if file.name == LAST:
            try:
                os.link(file, aside / LAST)
            except OSError:  # a file system without links
                _copy(file, aside / LAST)
        elif file.name != path.name and _is_later(file, checkpoint["step"]):
            os.replace(file, aside / file.name)
    for name, log in logs.items():
        if log.exists():
            _copy(log, aside / name)
    save_checkpoint(folder / LAST, checkpoint)
    return aside


def _copy(path: Path, to: Path) -> None:
    with open(path, "rb") as source:
        write_atomically(to, lambda file: shutil.copyfileobj(source, file))


def _is_later(path: Path, step: int) -> bool:
    try:
        return read_checkpoint(path, mmap=True).get("step", 0) > step
    except InputError:  # damaged: nobody knows
        return True


def load_model(
    path: Path, device: torch.device | str = "cpu", *, averaged: bool | None = None
) -> tuple[Model, dict[str, Any]]:
    """The model of a checkpoint, with its weights, in evaluation mode; and the checkpoint itself.

    averaged: whether to take the averaged weights (EMA); default: if the run kept any, and then that is printed.
    """
    checkpoint = load_run(path)
    model = build_model(checkpoint["config"])
    averages = checkpoint.get("averaged")
    if averaged and not averages:
        raise InputError(f"{path} holds no averaged weights: its run was trained without ema")
    if averages and averaged is None:
        print(f"{path}: the averaged weights (EMA) are used")
    taken = averages if averages and averaged is not False else {}
    load_strictly(model, {**checkpoint["model"], **taken}, source=str(path))
    return model.to(device).eval(), checkpoint


@contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Say in one sentence why a checkpoint could not be written, and that the earlier ones are intact."""
    if not folder.is_dir():
        raise InputError(f"{folder} has vanished, the folder of this run's checkpoints: put it back and start again")
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch's writer turns an OSError into a RuntimeError of its own
        cause = error if isinstance(error, OSError) else error.__cause__ or error.__context__
        if not isinstance(cause, OSError):
            raise
        what = "the disk is full" if cause.errno in (errno.ENOSPC, errno.EDQUOT) else (cause.strerror or str(cause))
        raise InputError(
            f"{folder}: a checkpoint could not be written ({what}); the earlier ones are intact: mend that and start "
            "again with the same command"
        ) from error


def lock(descriptor: int) -> bool:
    """Lock an open file or folder, unless another process has; without effect on a file system without locks."""
    import fcntl  # Unix only

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


@contextmanager
def only_here(folder: Path) -> Iterator[None]:
    """Hold a run's folder, so that no second process trains the same run; an InputError if one does already."""
    held = os.open(folder, os.O_RDONLY)
    try:
        if not lock(held):
            raise InputError(
                f"{folder.name} is being trained by another process right now: wait for it, or begin a run of its own "
                "with resume none"
            )
        for left in folder.glob(".*.tmp"):  # half a file of our own, from a process that was killed
            left.unlink()
        yield
    finally:
        os.close(held)
