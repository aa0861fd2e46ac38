"""How many pairs fit into a device's memory, estimated without one: a step on tensors that have shapes and no content.

Legend: B samples in a batch (a past with its futures, or a clip).
"""

import os
import weakref
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from common.errors import InputError
from ml.config import RunConfig
from ml.devices import in_bfloat16
from ml.ranks import Ranks
from ml.SiamMAE import Model, build_model

# What stays free: for CUDA's context and the libraries' workspaces, and for gaps between the allocator's blocks.
CONTEXT, GAPS = 3 << 29, 0.08
TRACED = 64, 128  # samples: so many that activations, not weights, make the peak


class Live(TorchDispatchMode):
    """Counts the bytes of all storages that are alive at once; `peak` is the most that there ever was."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._hear_of(tensor.untyped_storage())
        return out

    def _hear_of(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, key, size).atexit = False

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def rehearse(model: Model, samples: int, shape: tuple[int, ...], watch: TorchDispatchMode, *, bfloat16: bool) -> None:
    """Forward and backward of a model on the `meta` device, whose parameters become fakes on the CPU, under a watch.

    shape: of a sample's frames, [F, 3, H, W]. bfloat16: the CPU's autocast, which casts what a GPU's does.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        frames, channels, height, width = shape
        video = torch.empty(samples, frames, height, width, channels, dtype=torch.uint8).permute(0, 1, 4, 2, 3)
        seeds = torch.empty(samples, dtype=torch.int64)
        with watch:
            held = video.clone()  # on the device
            noise = model.draw_noise(held, seeds)
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                loss = model(held, noise=noise)[0]
            loss.backward()


def bytes_of_step(config: RunConfig, samples: int, *, bfloat16: bool) -> int:
    """The most bytes that a step of `samples` needs at once: weights, AdamW's state, averages, gradients, what is kept
    for the backward pass, and what comes and goes."""
    with torch.device("meta"):
        model = build_model(config.model.model, **config.model_arguments)
    size = config.data.image_size
    live = Live()
    rehearse(model, samples, (config.data.frames, 3, size, size), live, bfloat16=bfloat16)
    weights = sum(p.nbytes for p in [*model.parameters(), *model.buffers()])
    trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    return live.peak + weights + (3 if config.optimisation.ema else 2) * trained


def pairs_that_fit(config: RunConfig, memory: int, *, bfloat16: bool = True) -> int:
    """How many pairs, or clips, of one batch fit into so many bytes; 0 if not even one does."""
    few, many = TRACED
    least, most = (bytes_of_step(config, samples, bfloat16=bfloat16) for samples in TRACED)
    each = (most - least) / (many - few)  # everything that depends on the batch is proportional to it
    usable = (1 - GAPS) * memory - CONTEXT
    return max(0, int((usable - (least - few * each)) // each)) * config.data.futures


def memory_of(device: torch.device) -> int:
    """Bytes that a step may take: of a GPU what is free now; else half of the machine's."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def with_pairs_that_fit(config: RunConfig, device: torch.device, ranks: Ranks) -> RunConfig:
    """A number in place of `pairs_per_device` auto: the largest part of a device's share that fits into every one."""
    if config.optimisation.pairs_per_device != "auto":
        return config
    fit = min(ranks.gather(pairs_that_fit(config, memory_of(device), bfloat16=in_bfloat16(device))))
    share = config.optimisation.batch_size // ranks.world_size
    parts = [part for part in range(config.data.pairs_per_visit, share + 1) if share % part == 0 and part <= fit]
    parts = [part for part in parts if part % config.data.pairs_per_visit == 0]
    if not parts:
        raise InputError(
            f"{fit} pairs fit into the memory of {device}, and {config.data.pairs_per_visit} come from one visit to a "
            f"video, of a share of {share}: choose a smaller model, --checkpointing, or a smaller --repeated-sampling"
        )
    return config.replace(pairs_per_device=parts[-1])
