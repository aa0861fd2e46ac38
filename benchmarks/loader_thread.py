"""`python -m benchmarks.loader_thread`: what a batch costs the thread that trains, in CPU milliseconds.

The loader's processes give noise at once, so that nothing is measured but how a batch comes to the training thread: its
message, the copy out of shared memory (by a thread of its own), the hand-over. Beside it, that copy by itself: what the
training thread would pay if it copied. CPU time, so that a busy machine does not count.

Legend: B pairs in a batch, S side of a frame in pixels.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from dataset_loader.workers import Key, Pool

MOST = 2.0  # ms of the training thread for a batch of 256


@dataclass(frozen=True)
class Noise:
    """Batches as large as real ones, with paths as long, which cost nothing to load."""

    pairs: int
    size: int

    def load_batch(
        self, keys: Sequence[Key], *, allocate: Callable[[Sequence[int]], torch.Tensor], **_: Any
    ) -> dict[str, Any]:
        video = allocate([self.pairs, 2, self.size, self.size, 3])
        if not video[-1, -1, -1, -1, -1]:  # memory that was just made
            video.fill_(1)
        name = "/data/kinetics400_packed/train-00042.tar:abcdefghijk_000012_000022.mp4"
        return {
            "video": video.permute(0, 1, 4, 2, 3), "time": torch.zeros(self.pairs, 2), "path": [name] * self.pairs,
            "box": torch.zeros(self.pairs, 2, 5), "seed": torch.arange(self.pairs), "bad": [],
        }  # fmt: skip

    def name_tried(self, key: Key, attempt: int) -> str:
        return ""


def measure(pairs: int, size: int, batches: int, workers: int) -> dict[str, float]:
    """Medians over the batches, in ms of one thread's CPU time; `others` is all else in this process, a batch."""
    pool = Pool(Noise(pairs, size), workers, time_limit=60, max_lost=0)
    spent: list[float] = []
    others = 0.0
    with closing(pool.batches([[(0, k)] for k in range(batches + 3)])) as loaded:
        for number in range(batches + 3):
            if number == 3:  # processes and memory are there
                others = time.process_time() - time.thread_time()
            start = time.thread_time()
            batch = next(loaded)
            spent.append(time.thread_time() - start)
        others = (time.process_time() - time.thread_time() - others) / batches
    shared, copies = np.ones(batch["video"].numel(), np.uint8), []
    target = np.empty_like(shared)
    for _ in range(5):
        start = time.thread_time()
        np.copyto(target, shared)
        copies.append(time.thread_time() - start)
    found = {"training thread": median(spent[3:]), "other threads": others, "the copy alone": median(copies)}
    return {name: 1e3 * seconds for name, seconds in found.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=256, help="B")
    parser.add_argument("--size", type=int, default=224, help="S")
    parser.add_argument("--batches", type=int, default=30)
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--out", type=Path, help="also write the figures to this file, as JSON")
    given = parser.parse_args(arguments)
    result = measure(given.pairs, given.size, given.batches, given.workers)
    verdict = "met" if result["training thread"] < MOST else "MISSED"
    print(f"{given.pairs} pairs of {given.size}×{given.size}, {given.workers} processes; CPU ms a batch:")
    print("\n".join(f"{name:<18}{value:8.2f}" for name, value in result.items()))
    print(f"asked of the training thread: < {MOST:g} ms, {verdict}")
    if given.out:
        given.out.write_text(json.dumps({**vars(given), "out": str(given.out), "ms": result}, indent=1) + "\n")


if __name__ == "__main__":
    main()
