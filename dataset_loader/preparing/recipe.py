"""How a data set is prepared: a value, apart from what carries it out."""

from dataclasses import dataclass
from typing import Literal

from common.errors import InputError

Form = Literal["frames", "packed", "gop"]
SILENCE = 120.0  # seconds: an encoder looks ahead before it gives its first frame


@dataclass(frozen=True)
class Recipe:
    """How a data set is prepared. What a form has no use for stays as it is.

    form: "frames", a folder of JPEGs for each video; "packed", shards; "gop", H.264 with a keyframe every few frames.
    fps: the frames nearest to a regular raster, in frames a second; None takes all of them. short_side: pixels; None
    keeps the size, and nothing is enlarged. quality: of JPEGs, to 100. gop: frames from one keyframe to the next.
    crf: H.264's constant quality, less is better. videos_per_shard: in packed shards.
    """

    form: Form
    fps: float | None = None
    short_side: int | None = 256
    quality: int = 90
    gop: int = 4
    crf: int = 18
    videos_per_shard: int = 256

    def __post_init__(self) -> None:
        limits = {"fps": (1e-3, 1000), "short_side": (2, 16384), "quality": (1, 100), "gop": (1, 10**6), "crf": (0, 51)}
        for name, (low, high) in (limits | {"videos_per_shard": (1, 10**6)}).items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise InputError(f"{name} is {value}; it must be {low:g} to {high:g}")


USED = {
    "frames": {"fps", "short_side", "quality"},
    "packed": {"fps", "short_side", "quality", "videos_per_shard"},
    "gop": {"fps", "short_side", "gop", "crf"},
}
