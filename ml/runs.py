"""Where a run lies, what it is called, and whether it may be gone on with."""

import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from mae.files import InputError
from ml.checkpoints import LAST, find_checkpoint, load_run, newest_whole, save_config
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
    """A run's name and files, what decides its numbers, and the checkpoint that it goes on from, if any."""

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
    identity: dict[str, Any],
    resume: str | Path | None,
    allow_changes: bool,
    ranks: Ranks,
    hold: Callable[[Path], object],
) -> Place:
    """A new run, or one that is gone on with: its logs are cut to what its checkpoint knows.

    identity: what decides the numbers of the run; a resume with another one is refused with what differs, unless
    changes are allowed. hold: is called with the run's folder before anything in it is touched. The first of the
    processes decides, and the others follow.
    """
    identity = json.loads(json.dumps(identity, default=str))
    run, path, checkpoint = _choose(root, prefix, identity, resume) if ranks.first else ("", None, None)
    run, path = ranks.agree((run, path))
    if path is None:
        if ranks.first:
            folder = root / "checkpoints" / run
            hold(folder)
            if not (folder / "config.json").exists():
                save_config(folder / "config.json", identity)
            _cut(Place(run, root, identity), 0, 0)
        return Place(run, root, identity)
    checkpoint = checkpoint or load_run(path)
    if checkpoint.get("format") != 2:
        raise InputError(f"{path} is of an earlier version: its weights can be loaded, but its run not gone on with")
    _compare(path, identity, checkpoint, allow_changes, ranks.first)
    place = Place(checkpoint["run"], root, identity, checkpoint)
    if ranks.first:
        hold(place.folder)
        _cut(place, checkpoint["epoch"], checkpoint["step"])
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


def _choose(
    root: Path, prefix: str, identity: dict[str, Any], resume: str | Path | None
) -> tuple[str, Path | None, dict[str, Any] | None]:
    """The run and the checkpoint to go on from, with its content where it had to be read to know that it is whole; or a
    new run (or one that had saved nothing yet) and None."""
    if resume in (None, "none"):
        return new_run(prefix, root), None, None
    if resume == "auto":
        unfinished = _unfinished(root, prefix, identity)
        if unfinished is None:
            return new_run(prefix, root), None, None
        return unfinished.name, *(newest_whole(unfinished) or (None, None))
    path = find_checkpoint(str(resume), root)
    if path.name == LAST:
        found = newest_whole(path.parent)
        if found is None:
            raise InputError(f"{path.parent} holds no checkpoint that is whole")
        return path.parent.name, *found
    return path.parent.name, path, None


def _unfinished(root: Path, prefix: str, identity: dict[str, Any]) -> Path | None:
    """The folder of the newest run of this prefix and configuration that has not reached its last epoch."""
    _check_prefix(prefix)
    stamp = re.compile(re.escape(prefix) + r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d")
    for config in sorted((root / "checkpoints").glob("*/config.json"), reverse=True):
        if not stamp.fullmatch(config.parent.name):
            continue
        if (config.parent / f"{identity['train']['epochs']}.pt").exists():
            continue
        if not _differences(identity, json.loads(config.read_text())):
            return config.parent
    return None


def _compare(
    path: Path, identity: dict[str, Any], checkpoint: dict[str, Any], allow_changes: bool, speak: bool
) -> None:
    then = dict(model=checkpoint["config"], train=checkpoint["settings"], run=checkpoint.get("run_config"))
    differing = _differences(identity, json.loads(json.dumps(then, default=str)))
    if not differing:
        return
    said = "; ".join(differing)
    if not allow_changes:
        raise InputError(
            f"{path} cannot be resumed, its configuration differs: {said}; give the same again, or allow changes"
        )
    if speak:
        print(f"going on although the configuration differs: {said}")


def _differences(now: dict[str, Any], then: dict[str, Any]) -> list[str]:
    said = []
    for part in ("model", "train", "run"):
        mine, its = now.get(part) or {}, then.get(part) or {}
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
