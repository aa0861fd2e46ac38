"""Where the frames of a video file lie, and when each is shown; the indices used last are kept.

Legend: N frames of a file, P packets of its video stream.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# The cache of indices holds as many frames as this: some 25 MB, 3,000 clips of ten seconds or nine hours of one film.
CACHED_FRAMES = 1_000_000


@dataclass(frozen=True, eq=False)
class VideoIndex:
    """When each frame of a file is shown, and where its packet lies.

    times: float64 [N], presentation times in seconds as the container states them, mended where one is missing or
    occurs twice (`times.mend`). They increase, but for resets of the clock (`times.resets`): the order is the file's.
    packets: int64 [P], presentation stamps in decoding order, packets that are decoded but not shown included.
    positions: int64 [N], the packet of each frame.
    keyframes: int64 [K], the packets at which decoding can start, ascending.
    A file that can only be decoded from its start (`sequential`) has times alone.
    """

    times: np.ndarray
    packets: np.ndarray
    positions: np.ndarray
    keyframes: np.ndarray

    @property
    def sequential(self) -> bool:
        return len(self.packets) == 0

    def runs(self, positions: Sequence[int]) -> list[tuple[int, list[int]]]:
        """Group ascending packet positions into (keyframe to start at, positions): a new run where skipping ahead pays.

        The keyframe that governs a packet is the last one before it, in the file, that is not shown after it: what is
        shown before a keyframe but lies behind it in the file may refer to frames from before the keyframe.
        """
        starts = []
        for position in positions:
            before = self.keyframes[: np.searchsorted(self.keyframes, position, side="right")]
            starts.append(int(before[self.packets[before] <= self.packets[position]][-1]))
        runs: list[tuple[int, list[int]]] = []
        for row, position in enumerate(positions):
            start = min(starts[row:])  # a packet further on may need an earlier start
            if runs and start <= runs[-1][1][-1] + 1:
                runs[-1][1].append(position)
            else:
                runs.append((start, [position]))
        return runs


class Cache:
    """The indices used last, bounded by the number of frames in them."""

    def __init__(self) -> None:
        self._indices: OrderedDict[tuple[str, int, int], VideoIndex] = OrderedDict()
        self._frames = 0

    def get(self, key: tuple[str, int, int]) -> VideoIndex | None:
        if key in self._indices:
            self._indices.move_to_end(key)
        return self._indices.get(key)

    def put(self, key: tuple[str, int, int], index: VideoIndex) -> VideoIndex:
        self._indices[key] = index
        self._frames += len(index.times)
        while self._frames > CACHED_FRAMES and len(self._indices) > 1:
            self._frames -= len(self._indices.popitem(last=False)[1].times)
        return index


cache = Cache()
