"""From a configuration and videos to a data set and a loader: the one place where they meet.

It honours `pairs_per_device`: a step of `batch_size` pairs may take several batches of the loader.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dataset_loader import PairDataset, PairLoader, get_kinetics_dataset, make_loader
from ml.config import RunConfig

Videos = str | Path | Iterable[str | Path]


def training_loader(
    config: RunConfig,
    videos: Videos,
    photos: Path | None = None,
    *,
    rank: int = 0,
    world_size: int = 1,
    pin_memory: bool = False,
) -> tuple[PairLoader, int]:
    """The shuffled batches of one process, and how many of them make a step: `accumulation` of `ml.utils.train`."""
    batch_size, accumulation = config.shares(world_size)
    dataset = get_kinetics_dataset(videos, photos=photos, **config.dataset_arguments)
    share: dict[str, Any] = dict(rank=rank, world_size=world_size, pin_memory=pin_memory)
    return make_loader(dataset, batch_size, workers=config.run.workers, **share), accumulation


def fixed_dataset(config: RunConfig, videos: Videos, visits: int) -> PairDataset:
    """Always the same samples, `visits` from each video, whatever the configuration's seed; not augmented."""
    fixed = {**config.dataset_arguments, "repeated_sampling": 1, "visits": visits, "seed": 0, "pairing": "video"}
    fixed["schedule"] = ""
    return get_kinetics_dataset(videos, augment=False, **fixed)


def fixed_loader(config: RunConfig, dataset: PairDataset, *, workers: int = 0, **share: Any) -> PairLoader:
    """The batches of a `fixed_dataset` in its order, the last one included. share: rank, world_size, pin_memory."""
    pairs = config.optimisation.pairs_at_once or config.optimisation.batch_size
    samples = max(1, pairs // config.data.futures)
    return make_loader(dataset, samples, workers=workers, shuffle=False, drop_last=False, **share)
