"""Where a run lies, what it is called, and whether it can be resumed."""

import json
import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from common.errors import InputError
from mae.weights import load_strictly
from ml.checkpoints import (
    FORMAT,
    LAST,
    PREVIOUS,
    find_checkpoint,
    free_name,
    load_run,
    newest_whole,
    numbered,
    rewind,
    save_config,
)
from ml.config import RunConfig
from ml.logs import cut_after, cut_steps_after
from ml.ranks import Ranks

# What may differ between two halves of a run: it does not decide any number (or, as how many pairs a device takes at
# once, only how sums are rounded).
FREE = {
    "workers", "pairs_per_device", "num_epochs_per_save", "save_minutes", "skip_nonfinite", "checkpointing",
    "score_epochs",
}  # fmt: skip


@dataclass(frozen=True)
class Place:
    """A run's name and files, what decides its numbers, and the checkpoint that it resumes from, if any."""

    run: str
    root: Path
    identity: dict[str, Any]
    checkpoint: dict[str, Any] | None = None

    @property
    def folder(self) -> Path:
        return self.root / "checkpoints" / self.run

    @property
    def losses(self) -> Path:
        return self.root / "losses" / f"{self.run}.txt"

    @property
    def steps(self) -> Path:
        return self.root / "losses" / f"{self.run}.jsonl"

    @property
    def test_losses(self) -> Path:
        return self.root / "test_losses" / f"{self.run}.txt"


def begin_run(
    root: Path,
    prefix: str,
    model: nn.Module,
    identity: dict[str, Any],
    resume: str | Path | None,
    allow_changes: bool,
    ranks: Ranks,
    hold: Callable[[Path], object],
) -> Place:
    """A new run, or one that is resumed: the model gets its weights, and its logs are cut to what these know.

    identity: what decides the numbers of the run; a resume with another one is refused with what differs, unless
    changes are allowed. hold: is called with the run's folder before anything in it is touched. The first of the
    processes decides, and the others follow.
    """
    identity = json.loads(json.dumps(identity, default=str))
    chosen = _choose(root, prefix, identity, resume, allow_changes) if ranks.first else _Choice("")
    run, path = ranks.agree((chosen.run, chosen.path))
    if path is None:
        if ranks.first:
            folder = root / "checkpoints" / run
            hold(folder)
            if not (folder / "config.json").exists():
                save_config(folder / "config.json", identity)
            _cut(Place(run, root, identity), 0, 0)
        return Place(run, root, identity)
    checkpoint = chosen.checkpoint or load_run(path)
    if checkpoint.get("format") != FORMAT:
        raise InputError(f"{path} is of an earlier version: its weights can be loaded, but its run not resumed")
    differing = _compare(path, identity, checkpoint, allow_changes)
    place = Place(checkpoint["run"], root, identity, checkpoint)
    _check_place(place, path)
    try:
        load_strictly(model, checkpoint["model"], source=path)
    except InputError as error:
        raise InputError(f"{path} cannot be resumed with another model: {differing or error}") from error
    if ranks.first:
        hold(place.folder)
        if differing:
            print(f"going on although the configuration differs: {differing}")
        if chosen.rewinding:
            _rewind(place, path, checkpoint)
        elif path.name != LAST and (place.folder / LAST).exists():  # damaged: must not become `previous.pt`
            kept = free_name(place.folder / "damaged.pt")
            os.replace(place.folder / LAST, kept)
            print(f"the damaged {LAST} is kept as {kept.name}")
        if _differences(identity, _read_config(place.folder) or {}):
            _rewrite_config(place)
        _cut(place, checkpoint["epoch"], checkpoint["step"])
        if checkpoint["epoch"] >= identity["train"]["epochs"]:
            print(f"{place.run} is finished: nothing left to do")
        else:
            print(f"going on with {place.run} after step {checkpoint['step']} (epoch {checkpoint['epoch'] + 1})")
    return place


def new_run(prefix: str, root: Path) -> str:
    """A name that no run has yet; its folder is made at once, so that two runs of one second do not meet."""
    _check_prefix(prefix)
    while True:
        run = f"{prefix}{datetime.now():%Y-%m-%d_%H-%M-%S}"
        folder = root / "checkpoints" / run
        if not (root / "losses" / f"{run}.txt").exists():
            try:
                folder.mkdir(parents=True)
                return run
            except FileExistsError:
                pass
        time.sleep(0.2)


class _Choice(NamedTuple):
    """A run and the checkpoint to go on from, with its content where that was read to know that it is whole; `path` is
    None for a new run, or one that had saved nothing yet. rewinding: it is not the run's newest."""

    run: str
    path: Path | None = None
    checkpoint: dict[str, Any] | None = None
    rewinding: bool = False


def _choose(
    root: Path, prefix: str, identity: dict[str, Any], resume: str | Path | None, allow_changes: bool
) -> _Choice:
    """What `resume` means here; a run that was already rewound to the file it names resumes where it is now."""
    if resume in (None, "none"):
        return _Choice(new_run(prefix, root))
    if resume in ("auto", "once"):
        folder = _own_run(root, prefix, identity, allow_changes, once=resume == "once")
        if folder is None:
            return _Choice(new_run(prefix, root))
        newest = newest_whole(folder)
        if newest is None and (numbered(folder) or any((folder / name).exists() for name in (LAST, PREVIOUS))):
            raise _nothing_whole(folder)
        return _Choice(folder.name, *(newest or ()))
    path = find_checkpoint(str(resume), root)
    run, newest = path.parent.name, newest_whole(path.parent)
    if path.name == LAST or Path(resume).name not in (path.name, path.stem):  # the run was named, not a file
        if newest is None:
            raise _nothing_whole(path.parent)
        return _Choice(run, *newest)
    checkpoint = load_run(path)
    if newest and newest[1].get("step") == checkpoint.get("step"):
        return _Choice(run, *newest)
    if newest and newest[1].get("rewound") == path.name and not _compare(path, identity, newest[1], allow_changes=True):
        print(f"{run} was rewound to {path.name} before, with this configuration: it goes on from where it is now")
        return _Choice(run, *newest)
    return _Choice(run, path, {**checkpoint, "rewound": path.name}, rewinding=True)


def _nothing_whole(folder: Path) -> InputError:
    return InputError(f"{folder} holds no checkpoint that is whole: begin a new run with --resume none")


def _own_run(root: Path, prefix: str, identity: dict[str, Any], allow_changes: bool, once: bool) -> Path | None:
    """The folder of the newest run of this prefix and configuration that has not reached its last epoch; once: or has.

    Where an unfinished one of this prefix differs in its configuration, that is printed; it is the one to resume if
    changes are allowed, and an InputError where the prefix says that it was meant.
    """
    _check_prefix(prefix)
    stamp = re.compile(re.escape(prefix) + r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d")
    other = None
    for folder in sorted((path.parent for path in (root / "checkpoints").glob("*/config.json")), reverse=True):
        if not stamp.fullmatch(folder.name):
            continue
        then = _read_config(folder)
        if then is None:
            print(f"{folder / 'config.json'} is empty or damaged: passed over; --resume {folder.name} goes on with it")
            continue
        differing = _differences(identity, then)
        finished = (folder / f"{then['train']['epochs']}.pt").exists()  # written after everything else
        if not differing and (once or not finished):
            return folder
        if differing and not finished and other is None and any(folder.glob("*.pt")):
            other = folder, "; ".join(differing)
    if other is None:
        return None
    if allow_changes:
        return other[0]
    said = f"{other[0].name} is unfinished, but {other[1]}"
    if prefix:
        raise InputError(
            f"{said}: --allow-changes goes on with it, --resume none or another prefix begins a run of its own"
        )
    print(f"{said}; beginning a new run (--allow-changes goes on with it)")
    return None


def _read_config(folder: Path) -> dict[str, Any] | None:
    """What decided the numbers of a run, or None where its file does not tell."""
    try:
        config = json.loads((folder / "config.json").read_text())
        parts = [config["model"], config["train"], config["run"] or {}]
        return config if config["train"]["epochs"] and all(isinstance(part, dict) for part in parts) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _rewind(place: Place, path: Path, checkpoint: dict[str, Any]) -> None:
    logs = {"losses.txt": place.losses, "steps.jsonl": place.steps, "test_losses.txt": place.test_losses}
    aside = rewind(place.folder, path, checkpoint, logs)
    print(
        f"{place.run} is rewound to {path.name}, after step {checkpoint['step']}: what came later, and its logs as "
        f"they were, are kept in {aside}"
    )


def _check_place(place: Place, path: Path) -> None:
    """An InputError if a checkpoint does not lie in its run's folder."""
    there = path.parent.resolve()
    if there == place.folder.resolve():
        return
    if there.name == place.run and there.parent.name == "checkpoints":
        raise InputError(f"{path} is of a run below another folder than {place.root}: give --root {there.parents[1]}")
    raise InputError(f"{path} does not lie in the folder of its run, {place.folder}: it can be loaded, but not resumed")


def _rewrite_config(place: Place) -> None:
    """The configuration that holds from now on; what held before is kept."""
    config = place.folder / "config.json"
    if config.exists():
        shutil.copyfile(config, free_name(config.with_stem("config_before")))
    save_config(config, place.identity)


def _compare(path: Path, identity: dict[str, Any], checkpoint: dict[str, Any], allow_changes: bool) -> str:
    """How a checkpoint's configuration differs, or an InputError with that; empty if it does not."""
    then = dict(model=checkpoint["config"], train=checkpoint["settings"], run=checkpoint.get("run_config"))
    said = "; ".join(_differences(identity, json.loads(json.dumps(then, default=str))))
    if said and not allow_changes:
        raise InputError(
            f"{path} cannot be resumed, its configuration differs: {said}; give the same again, or allow changes"
        )
    return said


def _differences(now: dict[str, Any], then: dict[str, Any]) -> list[str]:
    said = []
    for part in ("model", "train", "run"):
        mine, its = now.get(part) or {}, then.get(part) or {}
        if part == "run" and its:  # a field that came later: before, its default was in effect
            its = {**{name: value for name, value in RunConfig().flat().items() if name in mine}, **its}
        for key in [*mine, *(key for key in its if key not in mine)]:
            known = key != "data" or (mine.get(key) and its.get(key))  # a loader may not say what it reads
            if key not in FREE and known and mine.get(key) != its.get(key):
                said.append(f"{key} was {its.get(key)!r} and is now {mine.get(key)!r}")
    return list(dict.fromkeys(said))


def _cut(place: Place, epoch: int, step: int) -> None:
    cut_after(place.losses, epoch)
    cut_after(place.test_losses, epoch)
    cut_steps_after(place.steps, step, epoch)


def _check_prefix(prefix: str) -> None:
    if "/" in prefix or "\\" in prefix or ":" in prefix:
        raise InputError(f"the prefix {prefix!r} becomes part of a file name; leave out '/', '\\' and ':'")
