"""Measured rows that outlive their script: written to a JSON file one by one, until a deadline."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from common.files import write_json


class Rows:
    """What was measured, in `result`: {**head, "rows": [...], "left_out": [...], "seconds": so far}.

    budget: seconds for everything. stretch: seconds of a measured stretch. clock: seconds, as `time.monotonic`.
    """

    def __init__(
        self, file: Path, device: torch.device, budget: float, stretch: float, head: dict[str, Any],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.file, self.device, self.budget, self.stretch, self.clock = file, device, budget, stretch, clock
        self.begin, self.longest = clock(), 0.0
        self.result: dict[str, Any] = {**head, "rows": [], "left_out": []}

    @property
    def left(self) -> float:
        return self.budget - (self.clock() - self.begin)

    def has_time(self, what: str, seconds: float | None = None) -> bool:
        """Whether a part that takes so long still fits; if not, it is written down. None: a few stretches, or somewhat
        longer than what took longest so far."""
        if self.left > (max(4 * self.stretch, 1.5 * self.longest) if seconds is None else seconds):
            return True
        self.result["left_out"].append(what)
        return False

    def keep(self, **row: Any) -> None:
        """One more row; a number that is none becomes null."""
        numbers = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        self.result["rows"].append(numbers)
        self.write()

    def write(self) -> None:
        self.result["seconds"] = self.clock() - self.begin
        write_json(self.file, self.result)

    def seconds_of(self, work: Callable[[], Any]) -> float:
        """Mean seconds of a call over a stretch, after up to three unmeasured ones; less where the time runs out."""
        begin = self.clock()
        for _ in range(3):
            before = self.clock()
            work()
            self.wait()
            if self.clock() - before > self.stretch:  # so slow that warming is lost in it
                break
        calls, start = 0, self.clock()
        while True:
            work()
            calls += 1
            if (
                calls % 4 == 0 or self.device.type == "cpu" or self.left < 0
            ):  # a GPU that is asked too often stands still
                self.wait()
                now = self.clock()
                if now - start > self.stretch or self.left < 0:
                    self.longest = max(self.longest, now - begin)
                    return (now - start) / calls

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
