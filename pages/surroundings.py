"""What a result was made with: the command, the commit, versions and the machine, as plain values."""

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "timm", "numpy", "av")


def surroundings(packages: Sequence[str] = PACKAGES) -> dict[str, Any]:
    """Time, command, commit (None outside of a checkout), versions of Python and of packages, machine."""
    versions = {"python": platform.python_version()}
    for name in packages:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    command = shlex.join([os.path.basename(sys.argv[0]), *sys.argv[1:]])
    return dict(
        time=f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S %z}", command=command, commit=commit(), versions=versions,
        machine=platform.platform(),
    )  # fmt: skip


def note_start(folder: Path) -> None:
    """Add a line on the command that starts now to `starts.jsonl` of a run's folder."""
    with open(folder / "starts.jsonl", "a", encoding="utf-8", errors="backslashreplace") as file:
        file.write(json.dumps(surroundings(), ensure_ascii=False) + "\n")


def commit() -> str | None:
    """The commit of this workspace, with a word on changes; None where there is no checkout."""
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
