"""Where the arithmetic happens: the device, its precision, and the cores that the loader needs for itself."""

import torch

Device = torch.device | str | None


def best_device(device: Device = None) -> torch.device:
    """The device that was asked for, or the best there is: CUDA, Apple's, or the CPU."""
    if device is not None:
        return torch.device(device)
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def leave_cores(workers: int) -> None:
    """Let torch compute with the cores that the loader's processes leave, so that neither waits for the other."""
    torch.set_num_threads(max(1, torch.get_num_threads() - workers))


def precision(device: torch.device) -> torch.autocast:
    """bfloat16 for the matrix products on GPUs that have it, float32 elsewhere; weights and loss stay in float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda" and torch.cuda.is_bf16_supported())
