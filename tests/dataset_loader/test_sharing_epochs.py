"""An epoch is shared among ranks, and resumed in its middle, without a sample lost or seen twice."""

import av
import numpy as np
import pytest
import torch

from common.errors import InputError
from dataset_loader import get_kinetics_dataset, make_loader
from dataset_loader.loader import EpochSampler


def keys(length: int, epoch: int = 0, start: int = 0, **settings) -> list[tuple[int, int]]:
    sampler = EpochSampler(length, **settings)
    sampler.set_epoch(epoch, start)
    return list(sampler)


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(("length", "world_size"), [(50, 1), (50, 3), (51, 3), (2, 5), (0, 2)])
def test_ranks_are_disjoint_and_complete(length, world_size, shuffle):
    shares = [keys(length, 2, rank=rank, world_size=world_size, shuffle=shuffle) for rank in range(world_size)]
    together = [key for share in shares for key in share]
    assert sorted(together) == [(2, index) for index in range(length)]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    for rank, share in enumerate(shares):
        assert len(EpochSampler(length, rank=rank, world_size=world_size)) == len(share)


def test_the_first_steps_are_the_same_samples_however_many_ranks_share_them():
    """24 samples in 1, 2, 3 or 4 ranks: a run may go on with another number of them at the same global batch."""
    expected = set(keys(100, 1)[:24])
    for world_size in (2, 3, 4):
        each = 24 // world_size
        shares = [keys(100, 1, rank=rank, world_size=world_size)[:each] for rank in range(world_size)]
        assert {key for share in shares for key in share} == expected


def test_a_start_leaves_out_what_came_before():
    for world_size in (1, 3):
        for start in (0, 1, 7):
            settings = {"rank": world_size - 1, "world_size": world_size}
            assert keys(50, 4, start, **settings) == keys(50, 4, **settings)[start:]


def test_ranks_that_do_not_exist():
    for rank, world_size in ((1, 1), (-1, 2), (0, 0)):
        with pytest.raises(InputError, match="ranks are numbered from 0"):
            EpochSampler(5, rank=rank, world_size=world_size)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_goes_on_in_its_middle(videos, workers):
    dataset = get_kinetics_dataset(videos, image_size=16, visits=3, repeated_sampling=2)
    whole_loader = make_loader(dataset, 4)
    whole_loader.set_epoch(5)
    whole = list(whole_loader)
    assert len(whole) == 9
    loader = make_loader(dataset, 4, workers=workers)
    for start in (1, 8, 9):
        loader.set_epoch(5, start=start)
        assert len(loader) == 9
        rest = list(loader)
        assert len(rest) == 9 - start
        for one, other in zip(rest, whole[start:], strict=True):
            assert torch.equal(one["video"], other["video"])
            assert torch.equal(one["seed"], other["seed"])
        loader.set_epoch(5)
        assert next(iter(loader))["path"] == whole[0]["path"]
    with pytest.raises(InputError, match="start is 10; an epoch has 9 batches"):
        loader.set_epoch(5, start=10)


def test_the_ragged_end_after_a_start(videos):
    dataset = get_kinetics_dataset(videos, image_size=16)
    for drop_last, sizes in ((True, [4]), (False, [4, 2])):
        loader = make_loader(dataset, 4, drop_last=drop_last)
        for start in range(len(sizes) + 1):
            loader.set_epoch(0, start)
            assert [len(batch["video"]) for batch in loader] == sizes[start:]


def test_nothing_of_what_came_before_is_read(videos, monkeypatch):
    dataset = get_kinetics_dataset(videos, image_size=16)
    opened = []
    monkeypatch.setattr(av, "open", lambda name, *a, open_=av.open, **k: (opened.append(name), open_(name, *a, **k))[1])
    loader = make_loader(dataset, 1)
    loader.set_epoch(0, start=4)
    assert [path for batch in loader for path in batch["path"]] == [name.removeprefix("file:") for name in opened]
    assert len(opened) == 2


def test_ranks_share_an_epoch(videos):
    """Every rank has as many batches as the others; the videos of a step are disjoint, and their samples unchanged."""
    dataset = get_kinetics_dataset(videos, image_size=16, visits=3)
    alone = {}
    for batch in make_loader(dataset, 1):
        alone[int(batch["seed"][0])] = batch
    loaders = [make_loader(dataset, 2, rank=rank, world_size=4) for rank in range(4)]
    assert [len(loader) for loader in loaders] == [2] * 4
    seeds = []
    for loader in loaders:
        for batch in loader:
            seeds += batch["seed"].tolist()
            for frames, seed in zip(batch["video"], batch["seed"], strict=True):
                assert torch.equal(frames, alone[int(seed)]["video"][0])
    assert len(set(seeds)) == len(seeds) == 16
    everything = [make_loader(dataset, 2, rank=rank, world_size=4, drop_last=False) for rank in range(4)]
    seeds = [seed for loader in everything for batch in loader for seed in batch["seed"].tolist()]
    assert sorted(seeds) == sorted(alone)
    with pytest.raises(InputError, match="4 pairs an epoch for each of 4 ranks"):
        make_loader(dataset, 5, rank=0, world_size=4)


def test_the_streams_of_order_samples_and_replacements_differ():
    """numpy fills a short seed with zeros: [seed, epoch, index] and [seed, epoch, index, 0] would be one stream."""
    seeds = [[7, 3, 0], [7, 3, 0, 1], [7, 3, 0, 1, 2], [7, 3, 0, 2, 2], [7, 3, 1], [7, 3, 1, 1, 2]]
    assert len({np.random.default_rng(seed).integers(2**63) for seed in seeds}) == len(seeds)
