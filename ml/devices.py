"""Where the arithmetic happens: the device, its precision, its memory, and the cores that the loader needs."""

import ctypes
import os
import sys

import torch

from common.errors import InputError

Device = torch.device | str | None


def best_device(device: Device = None) -> torch.device:
    """The device that was asked for, or the best there is: CUDA, Apple's, the CPU. An InputError if it is not here.

    A GPU without a number is the current one; under torchrun, that of this process's number on its host (LOCAL_RANK).
    """
    cuda = torch.cuda.is_available()
    counts = {"cuda": torch.cuda.device_count() * cuda, "mps": int(torch.backends.mps.is_available()), "cpu": 1}
    if device is None:
        device = next(kind for kind, count in counts.items() if count)
    kind, _, number = str(device).partition(":")
    if kind == "cuda" and cuda and not number:
        number = os.environ.get("LOCAL_RANK") or str(torch.cuda.current_device())
        if int(number) >= counts["cuda"]:
            raise InputError(
                f"torchrun starts more processes here than there are GPUs ({counts['cuda']}): "
                "set --nproc-per-node to that"
            )
        return torch.device(kind, int(number))
    if not (number or "0").isdigit() or int(number or "0") >= counts.get(kind, 0):
        there = ", ".join(f"{kind}:{n}" for kind, count in counts.items() for n in range(count))
        raise InputError(f"device {str(device)!r} is not here; there is {there}")
    return torch.device(device)


def leave_cores(workers: int, device: torch.device | None = None) -> None:
    """Let torch compute with the cores that the loader's processes leave, so that neither waits for the other; with a
    few of them where it computes on a GPU."""
    most = torch.get_num_threads() if device is None or device.type == "cpu" else 4
    torch.set_num_threads(min(most, max(1, torch.get_num_threads() - workers)))


def in_bfloat16(device: torch.device) -> bool:
    """Whether matrix products are computed in bfloat16: on GPUs that have it."""
    return device.type == "cuda" and torch.cuda.is_bf16_supported()


def precision(device: torch.device) -> torch.autocast:
    """bfloat16 for the matrix products where the device has it, float32 elsewhere; weights and loss stay in float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=in_bfloat16(device))


def peak_memory(device: torch.device) -> int:
    """Peak memory so far in MiB: of the GPU, else of this process; 0 where the system does not tell."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20)
    try:
        import resource  # Unix only
    except ImportError:
        return 0
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10))


def keep_freed_memory() -> bool:
    """Let the C library keep freed memory, and torch use large pages; False where neither can be asked for.

    Otherwise a step's activations are given back to the system and asked for again in the next step, and the system
    zeroes every page of them: a twentieth of the time of a step of ViT-S/16. It changes no number, and costs that the
    process stays as large as it once was. Call it before the first tensor: torch looks only once whether it may use
    large pages (transparent huge pages, where Linux offers them by `madvise`).
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    trim_threshold, mmap_threshold = -1, -3  # of glibc
    return mallopt is not None and all((mallopt(trim_threshold, 2**31 - 1), mallopt(mmap_threshold, 32 * 2**20)))
