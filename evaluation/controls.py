"""Two controls in place of following, by the side of `evaluation.features.Source`.

`copy` repeats the first label: what a video's stillness alone is worth. `oracle` puts the *true* labels of the earlier
frames into the context, where the predicted ones belong: what a leak would give. It is no result.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from common.errors import InputError
from evaluation.features import Source
from evaluation.follow import follow_joints, follow_mask
from evaluation.protocols import Protocol
from evaluation.videos import Label, Video


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
        return f"oracle (true labels as context), {self.source.name}"

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


def true_labels(video: Video) -> dict[int, Label]:
    """The labels of all frames that have one, for the oracle and for pictures; never for a result."""
    return {index: label for index, label, _ in video.truth([video.first] * len(video))}


def follow(
    video: Video, by: Tracker, protocol: Protocol, *, batch: int = 1, void: int | None = None
) -> Iterator[Label]:
    """The labels of all frames of a video in order, the first included. void: a label that is not followed."""
    if isinstance(by, Copy):
        label = video.first
        for index in range(len(video)):
            if index in video.later:
                label = np.where(video.later[index] > 0, video.later[index], label)
            yield label
        return
    source, known = (by.source, true_labels(video)) if isinstance(by, Oracle) else (by, None)
    options: dict[str, Any] = dict(patch_size=source.patch_size, batch=batch, oracle=known, affinity=source.affinity)
    yield video.first
    if is_joints(video):
        yield from follow_joints(video.frames(), video.first, source.encode, protocol, **options)
    else:
        more: dict[str, Any] = dict(later=video.later, void=void)
        yield from follow_mask(video.frames(), video.first, source.encode, protocol, **options, **more)


def is_joints(video: Video) -> bool:
    """Whether a video's labels are joints [J, 2]; else they are masks [H, W]."""
    return video.first.dtype.kind == "f"
