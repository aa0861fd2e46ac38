"""Where the time of a piece of work goes, by what its kernels do."""

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity

from benchmarks.rows import Rows

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


def profile(rows: Rows, work: Callable[[], Any], steps: int = 3) -> dict[str, Any]:
    """Share of the kernels' time by what they do, the ten longest kernels, and the share in which none runs."""
    on_gpu = rows.device.type == "cuda"
    work()
    rows.wait()
    with torch.profiler.profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as recorded:
        start = time.perf_counter()
        for _ in range(steps):
            work()
        rows.wait()
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
