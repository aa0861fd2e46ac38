"""What training asks of a loader, and how it copes with one that offers less, such as PyTorch's own `DataLoader`.

Legend: B samples in a batch, R pairs (or clips) drawn from one video, F frames of a sample.
"""

from collections.abc import Iterator
from itertools import islice
from typing import Any, Protocol

import torch
from torch import Tensor

from common.errors import InputError
from ml.SiamMAE import Model

Batch = dict[str, Any]
"""`video` uint8 [B, F, 3, H, W] or [B, R, F, 3, H, W]; where known `seed` int64 [B] or [B, R], from which the masks
follow, `time` in seconds [B, F] and `path`."""


class Loader(Protocol):
    """Batches of an epoch; all that a loader must offer."""

    def __len__(self) -> int:
        """Batches in a whole epoch."""

    def __iter__(self) -> Iterator[Batch]:
        """The batches of the epoch that was chosen, from its start on."""


class EpochLoader(Loader, Protocol):
    """What a loader may offer beyond that; `dataset_loader.make_loader` gives one. Each is looked for by its name."""

    pairs: int
    """pairs (or clips) in a full batch of this rank, futures included; else the first batch is read and counted"""
    fingerprint: dict[str, Any]
    """plain values by which a resume knows the data again; its `dataset` may have it instead"""
    world_size: int
    """how many ranks share an epoch, 1 unless it says so"""

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch (from 1), and with how many batches left out it begins. Else every epoch is the same loop,
        and batches that a resume leaves out are read."""


def pairs_per_batch(loader: Loader, model: Model) -> int:
    """Pairs (or clips) in the loader's full batches on this rank."""
    known = getattr(loader, "pairs", None)
    if known is not None:
        return known
    state = torch.get_rng_state()
    try:
        return model.pairs_in(next(batches_from(loader, 1, 0))["video"])
    except StopIteration:
        raise InputError("the loader has no batch") from None
    finally:
        torch.set_rng_state(state)


def fingerprint(loader: Loader) -> dict[str, Any]:
    """What a resume recognises the data by; empty where the loader does not say."""
    return getattr(loader, "fingerprint", None) or getattr(getattr(loader, "dataset", None), "fingerprint", {})


def batches_from(loader: Loader, epoch: int, start: int) -> Iterator[Batch]:
    """The batches of an epoch from number `start` on (from 0)."""
    if hasattr(loader, "set_epoch"):
        loader.set_epoch(epoch, start)
        return iter(loader)
    for part in ("sampler", "dataset"):  # as PyTorch's DistributedSampler wants it
        if hasattr(getattr(loader, part, None), "set_epoch"):
            getattr(loader, part).set_epoch(epoch)
    batches = iter(loader)
    for _ in islice(batches, start):
        pass
    return batches


def seeds_of(batch: Batch, device: torch.device) -> Tensor | None:
    """The numbers that the masks of a batch follow from, one for each sample [B·R], if it brings any."""
    return batch["seed"].flatten().to(device, non_blocking=True) if "seed" in batch else None
