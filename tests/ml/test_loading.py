"""What training asks of a loader: ours and PyTorch's own, pairs counted, epochs chosen, files that are bad."""

import shutil

import pytest
import torch
from torch.utils.data import DataLoader

from common.errors import InputError
from dataset_loader import get_kinetics_dataset, make_loader
from ml.checkpoints import load_run
from ml.loading import batches_from, fingerprint, pairs_per_batch
from ml.logs import read_steps
from ml.optimisation import make_optimizer, make_scheduler
from ml.SiamMAE import build_model
from ml.utils import evaluate, train_one_epoch
from tests.ml.small import Pairs, Stop, run, tiny


class Own:
    """A loader of one's own, which offers nothing but its batches: pasts with `futures` each."""

    def __init__(self, futures=1, batches=2):
        self.futures, self.batches = futures, batches

    def __len__(self):
        return self.batches

    def __iter__(self):
        for k in range(self.batches):
            draw = torch.Generator().manual_seed(k)
            yield {"video": torch.randint(256, (4, 1 + self.futures, 3, 16, 16), generator=draw).byte()}


def test_pairs_are_counted_whoever_gives_them(clips):
    model, clip_model = tiny(), build_model("mae_st_micro_patch8")
    data = get_kinetics_dataset(clips, image_size=16, repeated_sampling=2, futures=3)
    state = torch.get_rng_state()
    for loader, expected in (
        (Own(), 4), (Own(2), 8), (Pairs(), 2), (make_loader(data, 4), 12), (DataLoader(data, 2, shuffle=True), 12),
    ):  # fmt: skip
        assert pairs_per_batch(loader, model) == expected
    assert pairs_per_batch(Own(7), clip_model) == 4
    assert torch.equal(torch.get_rng_state(), state), "counting must not change what a run draws"
    with pytest.raises(InputError, match="no batch"):
        pairs_per_batch(Own(batches=0), model)


@pytest.mark.parametrize("futures", [1, 2])
def test_the_learning_rate_counts_the_futures_of_a_loader_of_ones_own(futures, tmp_path):
    _, steps = run(tmp_path, Own(futures), base_lr=256, warmup_epochs=0)
    assert steps[0]["lr"] == 4 * futures


def test_a_plain_loader_of_pytorch_trains(clips, tmp_path):
    """Over our data set, whose samples have an axis of pairs from one video; every pair has its own mask."""
    data = get_kinetics_dataset(clips, image_size=16, repeated_sampling=2)
    loader = DataLoader(data, batch_size=3, shuffle=True)
    torch.manual_seed(0)
    name, steps = run(tmp_path, loader, base_lr=256, warmup_epochs=0)
    assert len(steps) == 2 * (2 + 1) and steps[0]["lr"] == 6
    assert load_run(tmp_path / "checkpoints" / name / "last.pt")["pairs"] == [6, 6]
    assert fingerprint(loader) == fingerprint(make_loader(data, 2)) and fingerprint(loader)["videos"] == 6
    assert fingerprint(Own()) == {}
    model = tiny()
    optimizer = make_optimizer(model, 1e-3)
    assert len(train_one_epoch(loader, optimizer, make_scheduler(optimizer, 1, 2), "cpu", model)) == 2
    data.set_epoch(0)
    ours, plain = make_loader(data, 6, shuffle=False), DataLoader(data, 3)
    assert evaluate(model, plain, "cpu") == evaluate(model, ours, "cpu")


def test_a_plain_loader_is_resumed_in_the_middle_of_an_epoch(tmp_path):
    """It is shuffled by torch's generator, and cannot skip."""
    data = [dict(video=torch.full((2, 3, 16, 16), k, dtype=torch.uint8), path=str(k)) for k in range(12)]
    options = dict(save_minutes=0)

    class Ending(DataLoader):
        def __iter__(self):
            for k, batch in enumerate(super().__iter__()):
                if k == 4 and self.ends:
                    raise Stop
                yield batch

    ends = []
    for cut in (False, True):
        loader, root = Ending(data, 2, shuffle=True), tmp_path / str(cut)
        loader.ends = cut
        model = tiny(trained="")
        torch.manual_seed(5)
        if cut:
            with pytest.raises(Stop):
                run(root, loader, model, **options)
            torch.manual_seed(99)
            loader.ends, model = False, tiny(1, trained="")
        name, _ = run(root, loader, model, resume="auto", **options)
        ends.append(load_run(root / "checkpoints" / name / "last.pt")["model"])
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])


def test_the_parts_of_a_plain_loader_hear_of_the_epoch():
    class Data(list):
        def set_epoch(self, epoch):
            self.epoch = epoch

    data = Data(range(8))
    sampler = torch.utils.data.DistributedSampler(data, 2, 0, shuffle=True)
    orders = [torch.cat(list(batches_from(DataLoader(data, 2, sampler=sampler), epoch, 0))) for epoch in (1, 2, 1)]
    assert torch.equal(orders[0], orders[2]) and not torch.equal(orders[0], orders[1]) and data.epoch == 1
    (rest,) = batches_from(DataLoader(data, 2, sampler=sampler), 1, 1)
    assert torch.equal(rest, orders[0][2:])


@pytest.mark.parametrize(("good", "batches", "accumulation"), [(3, 8, 2), (3, 7, 2), (2, 7, 3)])
def test_most_files_bad_is_raised_whatever_the_accumulation(good, batches, accumulation, clips, tmp_path):
    """Also where the last batches do not fill a step."""
    folder = tmp_path / "videos"
    folder.mkdir()
    for k in range(batches):
        target = folder / f"{k}.mp4"
        if k < good:
            shutil.copy(next(clips.glob(f"*_{k}.mp4")), target)
        else:
            target.write_bytes(b"no video")
    loader = make_loader(get_kinetics_dataset(folder, image_size=16), 1)
    with pytest.raises(InputError, match=rf"{batches - good} of {batches} videos could not be used"):
        run(tmp_path, loader, accumulation=accumulation)


def test_a_loader_that_does_not_fit_is_said(tmp_path):
    with pytest.raises(InputError, match="has 2 batches, and a step takes 3"):
        run(tmp_path, Own(), accumulation=3)

    class Short(Own):
        def __len__(self):
            return 5

    with pytest.raises(InputError, match="ended after 2 steps of epoch 1, too early"):
        run(tmp_path, Short())
    assert len(read_steps(next((tmp_path / "losses").glob("*.jsonl")))) == 2
