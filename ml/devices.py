"""Where the arithmetic happens: the device, its precision, and the cores that the loader needs for itself."""

import os

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


def leave_cores(workers: int) -> None:
    """Let torch compute with the cores that the loader's processes leave, so that neither waits for the other."""
    torch.set_num_threads(max(1, torch.get_num_threads() - workers))


def precision(device: torch.device) -> torch.autocast:
    """bfloat16 for the matrix products on GPUs that have it, float32 elsewhere; weights and loss stay in float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda" and torch.cuda.is_bf16_supported())
