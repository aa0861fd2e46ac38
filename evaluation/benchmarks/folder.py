"""A video of one's own: followed and shown, but there is nothing to score against."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.errors import InputError
from common.words import counted
from evaluation.benchmark import Benchmark, Scores
from evaluation.videos import Decode, Label, Video, check_mask, check_size, folder_of, pictures_in, read_mask, select


@dataclass(frozen=True)
class Folder(Benchmark):
    """Pictures or a video file of your own, of which nothing is scored."""

    data: Path
    """folder of pictures, or a video file; nothing is written there"""
    mask: Path
    """the mask of the first picture, a palette PNG or a grey one"""
    threshold: int | None = None
    """what is at least as bright in the mask (0 … 255) is the one object: for JPEGs and soft edges"""

    columns = ("objects",)

    def videos(self, names: Sequence[str] = ()) -> Iterator[Video]:
        decode, name = None, self.data.name
        roots: tuple[Path, ...] = (self.data,)
        if not self.data.is_file():
            paths = pictures_in(self.data)
        else:
            frames, decode = self.decoder()
            if frames < 2:
                raise InputError(f"{self.data} has {counted(frames, 'frame')}; following needs at least 2")
            paths = tuple(self.data / f"{number:05d}" for number in range(frames))
            roots, name = folder_of(self.data), self.data.stem
        select([name], names)
        first = read_mask(self.mask, self.threshold)
        check_mask(first, str(self.mask))
        roots = (*roots, *folder_of(self.mask))
        video = Video(name, paths, first, lambda index: None if index else first, roots, decode)
        check_size(first.shape, next(video.frames([0])).shape, paths[0], self.mask)
        yield video

    def decoder(self) -> tuple[int, Decode]:
        """The number of frames of a video file, and the function that gives them: for whoever has a decoder."""
        raise InputError(f"{self.data} is a file: expected a folder of pictures")

    def score(self, video: Video, results: Sequence[Label]) -> Scores:
        return {"objects": len(np.unique(video.first[video.first > 0]))}

    def row(self, scores: Mapping[str, Scores]) -> dict[str, float]:
        return {}

    def cells(self, scores: Scores) -> tuple[str, ...]:
        return (str(scores["objects"]),)
