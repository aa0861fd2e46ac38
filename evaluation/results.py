"""What an evaluation leaves in its folder, and what lets it go on after an interruption.

run.json                         benchmark, protocol, source: what every result in this folder was made with
videos/<video>.json              the scores of a finished video; a run that goes on leaves these videos out
results.json                     everything: row, scores of each video, protocol, commit, versions, time, memory
global_results.csv, per-sequence_results.csv    DAVIS alone: the layout of the official tool

A folder of exports keeps its own run.json and videos/ in .siammae/, which the official tool does not look into.
"""

import hashlib
import json
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from common.errors import InputError
from common.files import write_atomically
from evaluation.datasets import Video

Record = dict[str, Any]

GLOBAL_COLUMNS = ("J&F-Mean", "J-Mean", "J-Recall", "J-Decay", "F-Mean", "F-Recall", "F-Decay")
SEQUENCE_COLUMNS = ("Sequence", "J-Mean", "F-Mean")


class Folder:
    """The results of one run: `key` (plain values) tells what they were made with.

    inside: where in the folder run.json and videos/ lie. Raises InputError for a folder within a video's data set,
    for one that holds the results of another run, and for one that holds anything else.
    """

    def __init__(
        self, path: str | Path, key: Mapping[str, Any], videos: Sequence[Video[Any]], inside: str = ""
    ) -> None:
        self.path, self._inside = Path(path), Path(path, inside)
        _refuse_data_folder(self.path, videos)
        self.key = json.loads(json.dumps(key))
        refuse_others(self.path, self._inside / "run.json", self.key)

    def claim(self) -> None:
        """Make the folder this run's."""
        write_json(self._inside / "run.json", self.key)

    def record(self, video: Video[Any]) -> Record | None:
        """What is known of a finished video, or None."""
        path = self._path(video)
        if not path.is_file():
            return None
        record = _read(path)
        if record.get("first") != digest(video.first) or record.get("frames") != len(video):
            raise InputError(f"{path} is about another video {video.name!r} than the one given; name another folder")
        return record

    def keep(self, video: Video[Any], record: Record) -> None:
        write_json(self._path(video), record)

    def _path(self, video: Video[Any]) -> Path:
        return self._inside / "videos" / f"{video.name}.json"


def check_names(videos: Sequence[Video[Any]]) -> None:
    """Names become files: they must differ, and lead nowhere else."""
    names = [video.name for video in videos]
    if not names:
        raise InputError("there is no video to evaluate")
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"two videos are called {name!r}; results are kept by name")
        if name.startswith("/") or ".." in Path(name).parts or not name:
            raise InputError(f"a video called {name!r} leads out of the folder of the results")


def refuse_others(folder: Path, mark: Path, key: Mapping[str, Any]) -> None:
    """Nothing is ever overwritten: a folder must be empty, dot-files aside, or `mark` in it hold this key."""
    occupied = folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir())
    if mark.is_file():  # looked for last: a process beside this one may be the first in the folder
        differing = _differences(_read(mark), key)
        if differing:
            raise InputError(f"{folder} holds results of another run ({'; '.join(differing)}); name another folder")
    elif occupied:
        raise InputError(f"{folder} holds files that are not of this run, and is not overwritten; name another folder")


def _refuse_data_folder(path: Path, videos: Sequence[Video[Any]]) -> None:
    """Nothing is ever written into a data set's folder."""
    target = path.resolve()
    for root in {root.resolve() for video in videos for root in video.roots}:
        if target == root or root in target.parents:
            raise InputError(f"{path} lies in the data set's folder {root}, where nothing is written; name another one")


def digest(label: Any) -> str:
    """What tells one video from another of the same name: its first label."""
    return hashlib.sha256(str(label.shape).encode() + label.tobytes()).hexdigest()[:16]


def write_davis_csv(folder: Path, row: Mapping[str, float], records: Sequence[Record]) -> None:
    """The two files of the official tool: three decimals, a row per object called `<sequence>_<object>`."""
    whole = [GLOBAL_COLUMNS, [f"{row[name]:.3f}" for name in GLOBAL_COLUMNS]]
    each = [
        (f"{record['video']}_{entry['object']}", f"{entry['J-Mean']:.3f}", f"{entry['F-Mean']:.3f}")
        for record in records
        for entry in record["scores"]["objects"]
    ]
    for name, lines in (("global", whole), ("per-sequence", [SEQUENCE_COLUMNS, *each])):
        text = "".join(",".join(line) + "\n" for line in lines)
        _write_text(folder / f"{name}_results.csv", text)


def write_json(path: Path, content: Any) -> None:
    """Readable by any JSON parser: lists of numbers stay on a line."""
    text = json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False)
    text = re.sub(r"\[[^\[\]{}\"]*\]", lambda found: " ".join(found[0].split()), text)
    _write_text(path, text + "\n")


def surroundings() -> dict[str, Any]:
    """Versions, machine and, in a checkout, the commit of this workspace."""
    names = ("torch", "timm", "numpy", "cv2", "PIL")
    versions = {name: import_module(name).__version__ for name in names}
    return dict(
        commit=_commit(), versions=dict(python=platform.python_version(), **versions), machine=platform.platform()
    )


def peak_memory() -> dict[str, int]:
    """The most bytes that this process has held until now, and on a GPU, where one is used."""
    import torch

    peak: dict[str, int] = {}
    try:
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        peak["process"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    except ImportError:  # Windows
        pass
    if torch.cuda.is_initialized():
        peak["gpu"] = torch.cuda.max_memory_allocated()
    return peak


def _write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write(text.encode()))


def _commit() -> str | None:
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        return None

    def git(*words: str) -> str:
        found = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, timeout=20, check=True)
        return found.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + (", with changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as a result ({error}); move it away") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a result of an evaluation; name another folder")
    return content


def _differences(then: Any, now: Any, name: str = "") -> list[str]:
    """The plain values in which two runs differ, in words."""
    if isinstance(then, dict) and isinstance(now, dict):
        keys = list(dict.fromkeys([*then, *now]))
        return [word for key in keys for word in _differences(then.get(key), now.get(key), f"{name} {key}".strip())]
    return [] if then == now else [f"{name} was {then!r} and is now {now!r}"]
