"""Every prefix of a run's writes, flushes and renames leaves a run that loads, after a kill and after power failure."""

import builtins
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mae.models_mae import MAEEncoder
from ml.checkpoints import newest_whole
from ml.logs import read_losses, read_steps
from ml.SiamMAE import SiamMAE
from ml.training import train


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


class Pairs:
    """A loader of three batches of random pairs."""

    batch_size = 2

    def __len__(self):
        return 3

    def set_epoch(self, epoch, start=0):
        self.epoch, self.start = epoch, start

    def __iter__(self):
        for k in range(self.start, 3):
            draw = torch.Generator().manual_seed(10 * self.epoch + k)
            video = torch.randint(256, (2, 2, 3, 16, 16), dtype=torch.uint8, generator=draw)
            yield {"video": video, "seed": torch.arange(2), "time": torch.tensor([[0.0, 0.5]] * 2), "path": ["a", "b"]}


def test_every_moment_leaves_a_run_that_loads(tmp_path, monkeypatch):
    torch.manual_seed(0)
    model = SiamMAE(MAEEncoder(16, 8, 16, 1, 2), decoder_size=(16, 1, 2))
    root = tmp_path / "run"
    root.mkdir()
    monkeypatch.setattr("ml.engine.Run._draw", lambda self: {})
    with monkeypatch.context() as recording:
        disk = Disk(root, recording)
        run = train(
            model, Pairs(), epochs=2, num_epochs_per_save=2, save_minutes=0, device="cpu", root=root,
            validation=Pairs(), progress=False,
        )  # fmt: skip
    kinds = [event[0] for event in disk.events]
    assert kinds.count("replace") > 12 and kinds.count("flush") > 12
    seen = {None: 0, "data lost": 0, "names lost": 0}
    for k, events in enumerate(disk.prefixes()):
        for power in seen:
            where = tmp_path / f"{k}_{power}"
            disk.play(events, where, power=power)
            folder, log = where / "checkpoints" / run, where / "losses" / run
            said = []
            found = newest_whole(folder, said.append) if folder.is_dir() else None
            step = found[1]["step"] if found else 0
            assert said == [], "nothing may be damaged"
            assert step >= seen[power], "what was saved must not be lost again"
            seen[power] = step
            if found:  # the logs know all that the state knows
                known = read_steps(log.with_suffix(".jsonl"))
                assert [s["step"] for s in known if "loss" in s][:step] == list(range(1, step + 1))
                epochs = read_losses(log.with_suffix(".txt")) if found[1]["epoch"] else []
                assert [line.epoch for line in epochs][: found[1]["epoch"]] == list(range(1, found[1]["epoch"] + 1))
            if (folder / "best.pt").is_file():
                assert torch.load(folder / "best.pt", weights_only=True)["epoch"] >= 1
    assert seen == {None: 6, "data lost": 6, "names lost": 6}
