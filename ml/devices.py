"""Where the arithmetic happens: the device, its precision, and the cores that the loader needs for itself."""

import torch

from common.errors import InputError

Device = torch.device | str | None


def best_device(device: Device = None) -> torch.device:
    """The device that was asked for, an InputError if it is not here; or the best there is: CUDA, Apple's, the CPU."""
    cuda = torch.cuda.is_available()
    counts = {"cuda": torch.cuda.device_count() * cuda, "mps": int(torch.backends.mps.is_available()), "cpu": 1}
    if device is None:
        kind = next(kind for kind, count in counts.items() if count)
        return torch.device(kind, torch.cuda.current_device()) if cuda else torch.device(kind)
    kind, _, number = str(device).partition(":")
    if not (number or "0").isdigit() or int(number or "0") >= counts.get(kind, 0):
        there = ", ".join(f"{kind}:{n}" for kind, count in counts.items() for n in range(count))
        raise InputError(f"device {str(device)!r} is not here; there is {there}")
    return torch.device(device)


def leave_cores(workers: int) -> None:
    """Let torch compute with the cores that the loader's processes leave, so that neither waits for the other."""
    torch.set_num_threads(max(1, torch.get_num_threads() - workers))


def precision(device: torch.device) -> torch.autocast:
    """bfloat16 for the matrix products on GPUs that have it, float32 elsewhere; weights and loss stay in float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda" and torch.cuda.is_bf16_supported())
