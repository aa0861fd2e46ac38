"""The user's names as a plain PyTorch user calls them: torch's own DataLoader and collate, own optimizer, own loop."""

import inspect

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from dataset_loader import get_kinetics_dataset
from mae.models_mae import ARCHITECTURES, MAEEncoder
from mae.models_mae_st import SpatiotemporalMAE
from ml.logs import read_losses
from ml.reconstruction import compare_with_copying
from ml.samples import save_samples
from ml.SiamMAE import SiamMAE, prepare_model
from ml.utils import evaluate, plot_results_from_checkpoint, plot_sample, train, train_one_epoch


def tiny():
    torch.manual_seed(0)
    return SiamMAE(MAEEncoder(32, 8, 48, 1, 4), 0.75, decoder_size=(32, 1, 4))


@pytest.fixture(scope="module", params=[pytest.param(1, marks=pytest.mark.slow, id="one pair a video"), 2])
def loader(request, clips):
    dataset = get_kinetics_dataset(clips, image_size=32, repeated_sampling=request.param)
    return DataLoader(dataset, batch_size=2)


def test_a_loop_of_ones_own(loader):
    """Torch's collate leaves the pairs of a video on an axis of their own, [B, R, 2, 3, H, W]; the model folds it."""
    model = tiny()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for batch in loader:
        B, R = len(batch["video"]), loader.dataset.temporal.repeated_sampling
        loss, prediction, mask = model(batch["video"], seeds=batch["seed"])
        assert prediction.shape == (B * R, 16, 192) and mask.shape == (B * R, 16)
        flat = model(batch["video"].view(B * R, 2, 3, 32, 32), seeds=batch["seed"].flatten())
        assert torch.equal(loss, flat[0]) and torch.equal(mask, flat[2])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert model(batch["video"])[0].isfinite()  # without seeds, too


def test_clips_are_folded_as_well():
    model = SpatiotemporalMAE(16, 8, 4, 2, 2, 48, 1, 4, 32, 1, 4)
    video, seeds = torch.randint(0, 256, (2, 3, 4, 3, 16, 16), dtype=torch.uint8), torch.arange(6)
    assert torch.equal(model(video, seeds=seeds.view(2, 3))[0], model(video.flatten(0, 1), seeds=seeds)[0])


def test_the_helpers_take_that_loader(loader, clips, tmp_path):
    model = tiny()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
    assert len(train_one_epoch(loader, optimizer, scheduler, "cpu", model)) == 3
    assert evaluate(model, loader, "cpu").mean > 0
    assert (
        compare_with_copying(model, loader)["all"]["patches"]
        == 12 * len(loader.dataset) * loader.dataset.temporal.repeated_sampling
    )
    assert len(plot_sample(next(iter(loader)), model, "cpu").axes) == 5
    run = train(model, loader, 2, "plain_", 1, "cpu", root=tmp_path, progress=False)
    assert [len(line.losses) for line in read_losses(tmp_path / "losses" / f"{run}.txt")] == [3, 3]
    video = np.random.default_rng(0).integers(0, 256, (1, 2, 3, 32, 32), dtype=np.uint8)
    save_samples(tmp_path / "samples.pickle", video, np.array([[0, 0.5]]), ["a"])
    figures = plot_results_from_checkpoint(run, loader, "cpu", tmp_path / "samples.pickle", root=tmp_path)
    assert len(figures) == 2 and (tmp_path / "test_losses" / f"{run}.txt").exists()


def test_prepare_model_by_keyword(tmp_path):
    """As the public demo and the workspace it came from call it."""
    mae = ARCHITECTURES["mae_vit_tiny_patch16"]()
    torch.save({"model": mae.state_dict()}, tmp_path / "mae_visualize_vit_tiny.pth")
    found = prepare_model(chkpt_dir=tmp_path / "mae_visualize_vit_tiny.pth", arch="mae_vit_tiny_patch16")
    assert torch.equal(found.norm.weight, mae.norm.weight)
    assert list(inspect.signature(prepare_model).parameters)[:2] == ["chkpt_dir", "arch"]
