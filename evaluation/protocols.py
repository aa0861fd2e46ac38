"""How labels are propagated, as named values: no number stands without the protocol it was measured in.

`paper` is CropMAE's and SiamMAE's (CRW's code with other numbers), `rsp` and `dino` are those papers' public scripts,
`dinov3` is that repository's notebook of segmentation tracking.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from math import ceil
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from common.errors import InputError

_CHOICES = {
    "shape": ("disk", "circle", "square"),
    "weights": ("softmax", "cut"),
    "reduce": ("bilinear", "nearest"),
    "enlarge": ("bilinear", "nearest"),
}


def _parse_size(size: str) -> tuple[str, list[int]]:
    """ "480x880" → ("fixed", [480, 880]); "short480" → ("short", [480])."""
    for rule in ("short", "long", "least"):
        if size.startswith(rule) and size[len(rule) :].isdecimal():
            return rule, [int(size[len(rule) :])]
    height, _, width = size.partition("x")
    if height.isdecimal() and width.isdecimal():
        return "fixed", [int(height), int(width)]
    raise InputError(f"size is {size!r}; expected such as 480x880 (height x width), short480 or long880")


@dataclass(frozen=True)
class Protocol:
    """One way to propagate labels, from the size of the input to the read-out of the result. Every field may differ.

    Args:
        name: what the protocol is called beside a number
        size: what frames are resized to (bilinear): "480x880" (height × width) as it stands; "short480" or "long880":
            that side, the other in proportion, rounded down to a multiple of 64; "least960": the short side, both
            sides rounded up to whole patches.
        context: frames that labels come from, besides the first one: the last `context` with their predicted labels.
        filled: whether these last frames are copies of the first at the beginning, so that it counts several times;
            otherwise there are none yet.
        top_k: how many of all context patches give a target patch its label.
        radius: how far away these may lie, in patches; 0 is no limit.
        shape: "disk": Euclidean distance < radius; "circle": ≤ radius; "square": each coordinate ≤ radius.
        first_unlimited: whether the first frame, which counts once beside the last ones, is exempt from the radius.
        temperature: similarities (cosines) are divided by it.
        weights: "softmax" over exactly the top k, or "cut": over all that reach the k-th value (they differ only in
            ties).
        reduce: how the first mask gets to the patch grid: "bilinear" (each object's, by way of the input size, without
            antialiasing) or "nearest" (from its own size).
        enlarge: how soft labels get to the input size: "bilinear" or "nearest".
        min_max: whether each soft label is stretched to [0, 1] before the largest one wins.
    """

    name: str
    size: str = "480x880"
    context: int = 20
    filled: bool = True
    top_k: int = 7
    radius: float = 20
    shape: Literal["disk", "circle", "square"] = "disk"
    first_unlimited: bool = True
    temperature: float = 0.7
    weights: Literal["softmax", "cut"] = "softmax"
    reduce: Literal["bilinear", "nearest"] = "bilinear"
    enlarge: Literal["bilinear", "nearest"] = "bilinear"
    min_max: bool = False

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise InputError(f"{name} is {getattr(self, name)!r}; expected {' or '.join(choices)}")
        for name, least in (("context", 0), ("top_k", 1), ("radius", 0)):
            if not getattr(self, name) >= least:
                raise InputError(f"{name} is {getattr(self, name)}; expected at least {least}")
        if not self.temperature > 0:
            raise InputError(f"temperature is {self.temperature}; expected more than 0")
        _parse_size(self.size)

    def __str__(self) -> str:
        """One line that stands beside every number."""
        first = "frame 0" + (" anywhere" if self.first_unlimited and self.radius else "")
        near = f"within {self.radius:g} ({self.shape})" if self.radius else "anywhere"
        queue = f"the last {self.context} {near}" + (", filled with frame 0" if self.filled else "")
        labels = f"{self.reduce} labels" + (", enlarged by the nearest" if self.enlarge == "nearest" else "")
        labels += ", min-max" if self.min_max else ""
        return (
            f"{self.name}: {self.size.replace('x', '×')}, {first} + {queue}, top {self.top_k}, "
            f"{self.weights} at T {self.temperature:g}, {labels}"
        )

    def input_size(self, height: int, width: int, patch_size: int = 16) -> tuple[int, int]:
        """What a frame of the given size is resized to, (height, width), in whole patches.

        Sides that the patch does not divide (480 by 14) are cut to those that it does.
        """
        rule, numbers = _parse_size(self.size)
        if rule == "fixed":
            size = (numbers[0], numbers[1])
        elif rule == "least":
            scale = numbers[0] / min(height, width)
            rows, columns = (ceil(round(side * scale / patch_size, 6)) for side in (height, width))
            size = (rows * patch_size, columns * patch_size)
        else:
            named, vertical = numbers[0], (height <= width) == (rule == "short")  # whether the named side is the height
            other = (named * width // height if vertical else named * height // width) // 64 * 64
            size = (named, other) if vertical else (other, named)
        size = (size[0] // patch_size * patch_size, size[1] // patch_size * patch_size)
        if 0 in size:
            raise InputError(f"frames of {height}×{width} at size {self.size!r} leave no patch of {patch_size} pixels")
        return size

    def with_(self, **overrides: Any) -> "Protocol":
        """The same with some fields changed; its name then says so, unless one is given."""
        unknown = set(overrides) - {field.name for field in fields(self)}
        if unknown:
            names = ", ".join(field.name for field in fields(self))
            raise InputError(f"a protocol has no {', '.join(sorted(unknown))}; its fields are {names}")
        changed = {key: value for key, value in overrides.items() if getattr(self, key) != value}
        if changed and "name" not in changed and not self.name.endswith(", changed"):
            changed["name"] = f"{self.name}, changed"
        return replace(self, **changed)


_PAPER = Protocol("paper")  # Gupta et al. 2023; numbers as in CropMAE (Eymaël et al. 2024)
_DINO = Protocol(  # Caron et al. 2021, eval_video_segmentation.py
    "dino",
    size="short480",
    context=7,
    filled=False,
    top_k=5,
    radius=12,
    shape="square",
    first_unlimited=False,
    temperature=0.1,
    weights="cut",
    reduce="nearest",
    min_max=True,
)
_RSP = replace(_DINO, name="rsp", context=30, top_k=7, radius=30)  # Jang et al. 2024

_DINOV3 = replace(_DINO, name="dinov3", size="least960", shape="circle", temperature=0.2, enlarge="nearest")  # 2025
NAMED = {"paper": _PAPER, "rsp": _RSP, "dino": _DINO, "dinov3": _DINOV3}


def protocol(name: str = "paper", changes: Mapping[str, Any] | None = None, **overrides: Any) -> Protocol:
    """The named protocol, with the changes that a benchmark makes to it, and with fields overridden."""
    if name not in NAMED:
        raise InputError(f"unknown protocol {name!r}; there are {', '.join(NAMED)}")
    return replace(NAMED[name], **(changes or {})).with_(**overrides)


if TYPE_CHECKING:
    Overrides = dict[str, Any]
else:  # flags of the command, for those that are given
    Overrides = TypedDict("Overrides", {f.name: f.type for f in fields(Protocol) if f.name != "name"}, total=False)
    Overrides.__doc__ = Protocol.__doc__
