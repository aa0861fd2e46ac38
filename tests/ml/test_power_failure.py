"""Every prefix of a run's writes, flushes and renames leaves a run that loads, after a kill and after power failure."""

import builtins
import io
import json
import os
import shutil
import zipfile
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path

import pytest
import torch

from ml.checkpoints import newest_whole
from ml.logs import read_losses, read_steps
from ml.ranks import Ranks
from ml.runs import begin_run
from ml.training import train
from tests.ml.small import Pairs, Stop, tiny
from tests.slowly import slowly


class Disk:
    """Records what happens to files below a folder, and plays any beginning of it back into another folder."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.events = root, []
        real_open, real_replace, real_fsync, real_unlink = builtins.open, os.replace, os.fsync, Path.unlink

        def name(path) -> str | None:
            path = Path(path)
            return str(path.relative_to(root)) if path.is_relative_to(root) else None

        def open_(path, mode="r", *args, **kw):
            file = real_open(path, mode, *args, **kw)
            known = name(path) if isinstance(path, str | Path) else None
            if known and mode[0] in "wa":
                self.events.append(("create" if mode[0] == "w" else "touch", known))
                write = file.write
                kind = (lambda data: data.encode()) if "b" not in mode else bytes
                recorded = _Recording(
                    file, lambda data: (self.events.append(("write", known, kind(data))), write(data))[1]
                )
                return recorded
            return file

        def replace(a, b):
            real_replace(a, b)
            if name(a):
                self.events.append(("replace", name(a), name(b)))

        def fsync(number):
            real_fsync(number)
            path = Path(os.readlink(f"/proc/self/fd/{number}"))
            if name(path):
                self.events.append(("flush folder" if path.is_dir() else "flush", name(path)))

        def unlink(path, missing_ok=False):
            if name(path) and path.exists():
                self.events.append(("unlink", name(path)))
            real_unlink(path, missing_ok=missing_ok)

        monkeypatch.setattr(builtins, "open", open_)
        monkeypatch.setattr(os, "replace", replace)
        monkeypatch.setattr(os, "fsync", fsync)
        monkeypatch.setattr(Path, "unlink", unlink)

    def damage(self, path: Path) -> None:
        """One bit of a file flips, where nobody sees it."""
        path.write_bytes(_rotten(path.read_bytes()))
        self.events.append(("damage", str(path.relative_to(self.root))))

    def prefixes(self) -> Iterator[list[tuple]]:
        """Beginnings of the sequence; of the many writes in a row to one file the first, one in the middle and all."""
        cuts, run = [], 0
        for k, event in enumerate(self.events):
            again = event[0] == "write" and k and self.events[k - 1][:2] == event[:2]
            run = run + 1 if again else 0
            last = k + 1 == len(self.events) or self.events[k + 1][:2] != event[:2]
            if event[0] != "write" or run in (0, 17) or last:
                cuts.append(k + 1)
        return (self.events[:k] for k in cuts)

    def play(self, events: list[tuple], where: Path, *, power: str | None) -> None:
        """What is on the disk after these events. power: `data lost`: a failure that loses what was not flushed, but
        not the names; `names lost`: one that loses renames of folders that were not flushed as well."""
        content: dict[int, bytearray] = {}
        durable: dict[int, bytes] = {}
        names: dict[str, int] = {}
        safe: dict[str, int] = {}
        for event in events:
            kind, path = event[:2]
            if kind == "create" or (kind == "touch" and path not in names):
                names[path] = len(content)
                content[len(content)] = bytearray()
            elif kind == "write":
                content[names[path]] += event[2]
            elif kind == "flush":
                durable[names[path]] = bytes(content[names[path]])
                safe.setdefault(path, names[path])  # as ext4 and xfs do for a new file
            elif kind == "damage":
                content[names[path]] = bytearray(_rotten(content[names[path]]))
                durable[names[path]] = _rotten(durable[names[path]])
            elif kind == "replace":
                names[event[2]] = names.pop(path)
            elif kind == "unlink":
                names.pop(path, None)
            elif kind == "flush folder":
                safe = {n: i for n, i in safe.items() if str(Path(n).parent) != path}
                safe |= {n: i for n, i in names.items() if str(Path(n).parent) == path}
        kept = safe if power == "names lost" else names
        for path, number in kept.items():
            data = durable.get(number, b"") if power else bytes(content[number])
            (where / path).parent.mkdir(parents=True, exist_ok=True)
            (where / path).write_bytes(data)


def _rotten(content: bytes) -> bytes:
    """With a bit flipped in the record of the largest tensor."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        tensor = max(archive.infolist(), key=lambda record: record.file_size)
    place = tensor.header_offset + tensor.file_size // 2
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


class _Recording:
    """A file whose writes are seen."""

    def __init__(self, file, write) -> None:
        self._file, self.write = file, write

    def __getattr__(self, name):
        return getattr(self._file, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._file.close()


@pytest.fixture
def recording(tmp_path, monkeypatch):
    """(disk, start): trains two epochs of two steps, saving after each, and records what that does to the disk."""
    root = tmp_path / "run"
    root.mkdir()
    disk = Disk(root, monkeypatch)

    def start(loader, **options):
        options = dict(epochs=2, save_minutes=0, device="cpu", root=root, progress=False, figures=False, **options)
        return train(tiny(), loader, **options)

    return disk, start


def identity_of(run, root):
    return json.loads((root / "checkpoints" / run / "config.json").read_text())


pairs = partial(Pairs, batches=2)


@cache
def model():
    """It gets the weights of whatever a run goes on from."""
    return tiny()


def gone_on_with(run, where, identity, resume):
    """(step, epoch) from which a run goes on after what happened to `where`; its logs know that much and no more."""
    place = begin_run(where, "", model(), identity, resume, False, Ranks(), lambda folder: None)
    assert place.run == run, "another run was begun"
    state = place.checkpoint or {"step": 0, "epoch": 0}
    steps = read_steps(place.steps) if state["step"] else []
    assert [step["step"] for step in steps if "loss" in step] == list(range(1, state["step"] + 1))
    assert [step["epoch"] for step in steps if "epoch_loss" in step] == list(range(1, state["epoch"] + 1))
    epochs = read_losses(place.losses) if state["epoch"] else []
    assert [line.epoch for line in epochs] == list(range(1, state["epoch"] + 1))
    return state["step"], state["epoch"]


POWER = (None, "data lost", "names lost")


@pytest.mark.slow
def test_every_moment_leaves_a_run_that_is_gone_on_with(recording, tmp_path, capsys):
    """In the middle of it `last.pt` rots: from then on the one before is used, until a new one is whole."""
    disk, start = recording
    with pytest.raises(Stop):
        start(pairs(stop=(2, 1)), validation=pairs())  # after three steps
    (folder,) = (disk.root / "checkpoints").iterdir()
    run, identity = folder.name, identity_of(folder.name, disk.root)
    disk.damage(folder / "last.pt")
    assert start(pairs(), validation=pairs(), resume="auto") == run
    assert {"damaged.pt", "last.pt", "previous.pt", "2.pt", "best.pt"} <= {p.name for p in folder.iterdir()}
    kinds = [event[0] for event in disk.events]
    assert kinds.count("replace") > 8 and kinds.count("flush") > 8
    seen = dict.fromkeys(POWER, 0)
    for k, events in enumerate(disk.prefixes()):
        rotten = "damage" in [event[0] for event in events]
        if events[-1][0] == "damage":
            seen = dict.fromkeys(POWER, 2)
        for power in seen:
            if power and events[-1][0] == "write":
                continue  # as before it: it is not on the disk yet
            where = tmp_path / f"{k}_{power}"
            disk.play(events, where, power=power)
            folder = where / "checkpoints" / run
            if not (folder / "config.json").exists():
                assert seen[power] == 0 and not list(folder.glob("*.pt"))
                continue
            finished = (folder / "2.pt").exists()
            capsys.readouterr()
            step, epoch = gone_on_with(run, where, identity, "once")
            assert rotten or "damaged" not in capsys.readouterr().out, "nothing else may be damaged"
            assert step >= seen[power], "what was saved must not be lost again"
            assert (step, epoch) == (4, 2) or not finished
            seen[power] = step
            if (folder / "best.pt").is_file():
                assert torch.load(folder / "best.pt", weights_only=True)["epoch"] >= 1
            if events[-1][0] == "replace" and events[-1][2].endswith(".pt"):
                again = begin_run(where, "", model(), identity, "auto", False, Ranks(), lambda folder: None)
                assert (again.run != run) == finished, "only a finished run is left alone"
            shutil.rmtree(where)
    assert seen == dict.fromkeys(POWER, 4)


@pytest.mark.parametrize("every", [3, *slowly(1)])
def test_a_rewind_is_made_once_whenever_it_is_cut_off(every, recording, tmp_path, capsys):
    """`--resume RUN/1` on a finished run, stopped and given again: at every moment both that line and the plain one go
    on, from before the rewind or from after it, and what was later than epoch 1 is kept."""
    disk, start = recording
    run = start(pairs(), num_epochs_per_save=1)
    folder, log = disk.root / "checkpoints" / run, disk.root / "losses" / f"{run}.txt"
    identity, before, written = identity_of(run, disk.root), len(disk.events), log.read_text()
    with pytest.raises(Stop):
        start(pairs(stop=(2, 1)), resume=f"{run}/1", num_epochs_per_save=1)
    after = len(disk.events)
    assert f"{run} is rewound to 1.pt, after step 2: what came later" in capsys.readouterr().out
    kept = {path.name for path in (folder / "before_rewind").iterdir()}
    assert kept == {"last.pt", "previous.pt", "2.pt", "losses.txt", "steps.jsonl"}
    assert (folder / "before_rewind" / "losses.txt").read_text() == written
    start(pairs(), resume=f"{run}/1", num_epochs_per_save=1)
    assert f"{run} was rewound to 1.pt before" in capsys.readouterr().out
    assert len(list(folder.glob("before_rewind*"))) == 1 and log.read_text() == written
    seen = {(power, resume): 0 for power in (None, "names lost") for resume in ("once", f"{run}/1")}
    for k, events in enumerate(disk.prefixes()):
        if not before <= len(events) <= after or events[-1][0] == "write" or (after - len(events)) % every:
            continue
        for power, resume in seen:
            where = tmp_path / f"{k}_{power}_{resume[-1]}"
            disk.play(events, where, power=power)
            _, newest = newest_whole(where / "checkpoints" / run)
            rewound = newest["rewound"] == "1.pt"
            step, _ = gone_on_with(run, where, identity, resume)
            assert step == (2 if "/" in resume else 4) or (rewound and step >= seen[power, resume])
            seen[power, resume] = step if rewound else 0
            shutil.rmtree(where)
    assert set(seen.values()) == {3}
