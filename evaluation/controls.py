"""Two controls that replace the propagation, and `follow`, which takes them or a feature source through a video.

`copy` repeats the first label: what a video's stillness alone is worth. `oracle` puts the *true* labels of the earlier
frames into the context, where the predicted ones belong: what a leak would give. It is no result.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from common.errors import InputError
from evaluation.datasets import Joints, Mask, Video
from evaluation.features import Source
from evaluation.follow import follow_joints, follow_mask
from evaluation.protocols import Protocol

Label = TypeVar("Label", Mask, Joints)

ORACLE = "oracle (true labels as context)"


@dataclass(frozen=True)
class Copy:
    """Repeats the first label."""

    name: str = "copy (the first label repeated)"
    weights: None = None


@dataclass(frozen=True)
class Oracle:
    """Follows with a source's features from true labels."""

    source: Source

    @property
    def name(self) -> str:
        return f"{ORACLE}, {self.source.name}"

    @property
    def weights(self) -> str | None:
        return self.source.weights


Tracker = Source | Copy | Oracle


def tracker(name: str, source: Callable[[str], Source]) -> Tracker:
    """`copy`, `oracle:SOURCE`, `oracle` (with the features of `pixels`), or what `source` makes of the name."""
    kind, _, rest = name.partition(":")
    if name == "copy":
        return Copy()
    if kind == "oracle":
        if rest.partition(":")[0] in ("copy", "oracle"):
            raise InputError(f"{name!r}: an oracle takes a source of features, such as oracle:pixels")
        return Oracle(source(rest or "pixels"))
    return source(name)


def true_labels(video: Video[Label]) -> dict[int, Label]:
    """The labels of all frames that have one, for the oracle and for pictures; never for a result."""
    return {index: label for index, label, _ in video.truth([video.first] * len(video))}


def follow(
    video: Video[Label],
    by: Tracker,
    protocol: Protocol,
    *,
    oracle: Mapping[int, Label] | None = None,
    batch: int = 1,
    budget: int | None = None,
) -> Iterator[Label]:
    """The labels of all frames of a video in turn, the given first one among them.

    oracle: the true labels by frame, which the control of that name needs and nothing else may have.
    """
    if isinstance(by, Oracle) != (oracle is not None):
        raise InputError(f"{by.name}: true labels go to the oracle, and to it alone")
    yield video.first
    if isinstance(by, Copy):
        for _ in video.paths[1:]:
            yield video.first
        return
    source = by.source if isinstance(by, Oracle) else by
    options: dict[str, Any] = dict(patch_size=source.patch_size, batch=batch, budget=budget)
    along = cast(Callable[..., Iterator[Label]], follow_joints if is_joints(video) else follow_mask)
    yield from along(video.frames(), video.first, source.encode, protocol, oracle=oracle, **options)


def is_joints(video: Video[Any]) -> bool:
    """Whether a video's labels are joints [J, 2]; else they are masks [H, W]."""
    return video.first.dtype.kind == "f"
