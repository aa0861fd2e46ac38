"""Densely labelled video of CamVid's kind (Brostow et al. 2009)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from common.errors import InputError
from evaluation.benchmark import Classes
from evaluation.videos import Video, mask_video, select, visible


@dataclass(frozen=True)
class CamVid(Classes):
    """CamVid's kind, mean IoU of classes: frames/ and labels/, with the pictures in them or in a folder per video."""

    classes = 11  # 11 itself is void
    void = classes

    def videos(self, names: Sequence[str] = ()) -> Iterator[Video]:
        root = self.data
        if not (root / "frames").is_dir() or not (root / "labels").is_dir():
            raise InputError(f"{root} lacks the folders frames/ and labels/ of densely labelled video")
        folders = [path.name for path in visible(root / "frames") if path.is_dir()]
        for name in select(folders or [root.name], names):
            place = name if folders else ""
            yield mask_video(name, root / "frames" / place, root / "labels" / place, roots=(root,))
