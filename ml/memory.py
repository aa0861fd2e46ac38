"""Memory on the CPU: keep what a training step frees, for the next one needs exactly the same."""

import ctypes
import os

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's mallopt


def keep_freed_memory() -> bool:
    """Let the C library keep freed memory, and torch use large pages; whether there is something to be told.

    Otherwise a step's activations are given back to the system after each step and asked for again in the next, and
    the system zeroes every page of them: a twentieth of the time of a step of ViT-S/16. It changes no number, and costs
    that the process stays as large as it once was. Call it before the first tensor, for torch looks only once whether
    it may use large pages (transparent huge pages, where Linux offers them by `madvise`).
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is None:
        return False
    return bool(mallopt(_TRIM_THRESHOLD, 2**31 - 1)) and bool(mallopt(_MMAP_THRESHOLD, 32 * 2**20))
