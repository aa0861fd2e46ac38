"""What both scripts of a first GPU hour share: the device, the clock, how a stretch is timed and profiled."""

import signal
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.profiler import ProfilerActivity

# What a kernel's name holds → what it does, the first that fits.
KINDS = {
    "fused by the compiler": ("triton",),
    "attention": ("flash", "fmha", "attention", "sdpa"),
    "matrix products": ("gemm", "cutlass", "nvjet", "xmma", "::mm", "addmm", "cublas"),
    "AdamW": ("adam", "multi_tensor"),
    "layer norm": ("layer_norm", "layernorm"),
    "GELU": ("gelu",),
    "sums over rows": ("reduce", "::sum"),
    "copies, casts, gathers": ("copy", "memcpy", "memset", "cat", "index", "gather", "fill"),
    "other elementwise": ("elementwise",),
}


class Late(Exception):
    """The time is up."""


class Bench:
    """The device, the clock of the whole run, and what was left out."""

    def __init__(self, settings: Any, device: torch.device, clock: Callable[[], float] = time.monotonic) -> None:
        self.settings, self.device, self._clock = settings, device, clock
        self.end = clock() + settings.budget
        self.left_out: list[str] = []

    def time_for(self, what: str, seconds: float) -> bool:
        """Whether there is time for a part that takes so long; if not, it is written down."""
        if self._clock() + seconds < self.end:
            return True
        self.left_out.append(what)
        return False

    @contextmanager
    def deadline(self) -> Iterator[None]:
        """`Late` is raised inside when the time is up, whatever runs then."""
        before = signal.signal(signal.SIGALRM, _late)
        signal.setitimer(signal.ITIMER_REAL, max(1e-3, self.end - self._clock()))
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    def seconds_of(self, work: Callable[[], Any]) -> float:
        """Mean seconds of one call, over a stretch that is long enough, after three unmeasured ones."""
        for _ in range(3):
            work()
        self.wait()
        calls, start = 0, time.perf_counter()
        while True:
            work()
            calls += 1
            if calls % 4 == 0 or self.device.type == "cpu":  # a GPU that is asked too often stands still meanwhile
                self.wait()
                if time.perf_counter() - start > self.settings.seconds:
                    return (time.perf_counter() - start) / calls

    def profile(self, work: Callable[[], Any], steps: int = 3) -> dict[str, Any]:
        """Share of the kernels' time by what they do, the ten longest kernels, and the share in which none runs."""
        on_gpu = self.device.type == "cuda"
        work()
        self.wait()
        with torch.profiler.profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as recorded:
            start = time.perf_counter()
            for _ in range(steps):
                work()
            self.wait()
            wall = time.perf_counter() - start
        kernels: dict[str, float] = defaultdict(float)
        for event in recorded.key_averages():
            seconds = (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e6
            if seconds:
                kernels[event.key] += seconds
        total = sum(kernels.values()) or 1.0
        kinds: dict[str, float] = defaultdict(float)
        for key, seconds in kernels.items():
            kind = next((k for k, words in KINDS.items() if any(word in key.lower() for word in words)), "the rest")
            kinds[kind] += seconds / total
        longest = sorted(kernels.items(), key=lambda item: -item[1])[:10]
        return {
            "idle": max(0.0, 1 - total / wall) if on_gpu else None,
            "kinds": dict(sorted(kinds.items(), key=lambda item: -item[1])),
            "longest": [{"kernel": key[:120], "share": seconds / total} for key, seconds in longest],
        }

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def _late(*_: Any) -> None:
    raise Late
