"""VIP: parts of people (Zhou et al. 2018)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from evaluation.benchmark import Classes
from evaluation.videos import Video, mask_video, read_list, select


@dataclass(frozen=True)
class VIP(Classes):
    """VIP, mean IoU of human parts: Images/<video>/, Annotations/Category_ids/<video>/, lists/<split>_videos.txt."""

    split: str = "val"
    """which list of videos"""

    classes = 20  # background included
    changes = {"": {"size": "long880"}, "paper": {"top_k": 10}}

    def videos(self, names: Sequence[str] = ()) -> Iterator[Video]:
        for name in select(read_list(self.data / "lists" / f"{self.split}_videos.txt"), names):
            masks = self.data / "Annotations" / "Category_ids" / name
            yield mask_video(name, self.data / "Images" / name, masks, roots=(self.data,))
