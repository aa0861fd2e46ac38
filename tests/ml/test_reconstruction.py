"""Pictures that do not leak the answer unless they say so, and the comparison with copying, by hand."""

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from common.errors import InputError
from dataset_loader import get_kinetics_dataset, make_loader
from mae.models_mae import MAEEncoder
from mae.patches import normalize, normalize_patches
from ml.checkpoints import save_checkpoint
from ml.logs import EpochLoss, read_losses
from ml.plots import loss_figure, save_figure
from ml.reconstruction import compare_with_copying, reconstruct
from ml.samples import save_samples
from ml.SiamMAE import SiamMAE
from ml.utils import plot_results_from_checkpoint, plot_sample


def tiny(**kw):
    torch.manual_seed(0)
    encoder = MAEEncoder(img_size=(24, 32), patch_size=8, embed_dim=48, depth=1, num_heads=4)
    return SiamMAE(encoder, kw.pop("mask_ratio", 0.75), decoder_size=(32, 1, 4), **kw)


def pair(seed=0):
    return torch.randint(0, 256, (2, 3, 24, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_visible_patches_are_pasted_in_and_hidden_ones_are_grey():
    model, video = tiny(), pair()
    row = reconstruct({"video": video, "time": torch.tensor([1.0, 1.5]), "seed": 3}, model)
    mask = model(video[None], seeds=torch.tensor([3]))[2]
    hidden = model.unpatchify(mask[..., None].expand(-1, -1, 192))[0].bool()
    assert hidden.float().mean() == 0.75 and row.times == [1.0, 1.5]
    future = video[1].float() / 255
    torch.testing.assert_close(row.frames[0], future)
    torch.testing.assert_close(row.past, video[0].float() / 255)
    torch.testing.assert_close(row.pasted[0][~hidden], future[~hidden])
    torch.testing.assert_close(row.pasted[0][hidden], row.raw[0][hidden])
    assert (row.masked[0][hidden] == 0.5).all() and torch.equal(row.masked[0][~hidden], row.frames[0][~hidden])
    assert row.loss == pytest.approx(model(video[None], seeds=torch.tensor([3]))[0].item())


def test_the_default_picture_tells_nothing_of_the_hidden_pixels():
    """Other hidden pixels, the same picture, unless the caption says otherwise."""
    model, video = tiny(), pair()
    mask = model(video[None], seeds=torch.tensor([3]))[2]
    hidden = model.unpatchify(mask[..., None].expand(-1, -1, 192))[0].bool()
    other = video.clone()
    other[1][hidden] = pair(1)[1][hidden] // 3
    one, two = (reconstruct({"video": v, "seed": 3}, model) for v in (video, other))
    assert torch.equal(one.raw, two.raw) and torch.equal(one.pasted, two.pasted) and "f1" in one.caption
    one, two = (reconstruct({"video": v, "seed": 3}, model, statistics="target") for v in (video, other))
    assert not torch.equal(one.raw, two.raw) and "HIDDEN" in one.caption
    plain = reconstruct(video, tiny(norm_pix_loss=False))
    assert "plain pixels" in plain.caption


def test_a_perfect_prediction_looks_like_the_frame():
    """With the target's own statistics, de-normalising undoes the normalising; with plain pixels nothing is needed."""
    video = pair()
    for norm_pix_loss in (True, False):
        model = tiny(norm_pix_loss=norm_pix_loss)
        target = model.target(normalize(video[None]))
        model.decoder.forward = lambda *args, target=target: target
        row = reconstruct(video, model, statistics="target")
        torch.testing.assert_close(row.raw[0], video[1].float() / 255, rtol=0, atol=1e-4)
        assert row.loss == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("normalised", [True, False])
def test_the_comparison_by_nested_loops(normalised):
    model = tiny(norm_pix_loss=normalised)
    video = torch.stack([pair(k) for k in range(4)])
    video[:, 1] = (video[:, 1].int() // 4 + video[:, 0].int() // 2).to(torch.uint8)  # f2 looks a little like f1
    batch = {
        "video": video, "seed": torch.arange(4), "path": ["a", "b", "a", "c"],
        "time": torch.tensor([[0.0, 0.2], [0, 0.5], [0, 1.2], [1, 2.5]], dtype=torch.double),
    }  # fmt: skip
    table = compare_with_copying(model, [{k: v[:2] for k, v in batch.items()}, {k: v[2:] for k, v in batch.items()}])
    target, copy = (model.patchify(normalize(video[:, frame])) for frame in (1, 0))
    target, copy = ((normalize_patches(x) if normalised else x).double() for x in (target, copy))
    _, prediction, mask = model(video, seeds=batch["seed"])
    other = [1, 0, 3, 2]
    _, fooled, _ = model(torch.stack([video[other, 0], video[:, 1]], 1), seeds=batch["seed"])
    mean = target.mean(-1, keepdim=True) + 0 * target
    guesses = {"model": prediction, "copy": copy, "mean": mean, "wrong f1": fooled}
    for part, members in {"all": range(4), "short": (0, 1), "long": (2, 3)}.items():
        places = [(b, n) for b in members for n in range(12) if mask[b, n]]
        for name, guess in guesses.items():
            errors = [(guess[b, n] - target[b, n]).square().mean().item() for b, n in places]
            assert table[part][name] == pytest.approx(np.mean(errors), rel=1e-6), (part, name)
        copied, wanted = (np.stack([x[b, n].numpy() for b, n in places]) for x in (copy, target))
        best = min((np.square(f * copied - wanted).mean(), f) for f in np.linspace(-1, 1, 2001))
        assert table[part]["copy × factor"] == pytest.approx(best[0], abs=1e-5)
        assert table[part]["factor"] == pytest.approx(best[1], abs=1e-3)
        assert table[part]["patches"] == len(places)
    with pytest.raises(InputError, match="second video"):
        compare_with_copying(model, [{**batch, "path": ["a"] * 4}])


def test_plot_sample_takes_what_datasets_give(clips):
    dataset = get_kinetics_dataset(clips, image_size=32, repeated_sampling=2)
    batch = next(iter(make_loader(dataset, 4)))
    torch.manual_seed(0)
    model = SiamMAE(MAEEncoder(32, 8, 48, 1, 4), 0.95, decoder_size=(32, 1, 4))
    for sample in (dataset[0], batch, batch["video"][0]):
        figure = plot_sample(sample, model, "cpu")
        assert isinstance(figure, Figure) and len(figure.axes) == 5
        assert "95%" in figure.get_suptitle() and "f1's patch" in figure.get_supxlabel()
    assert "gap" in plot_sample(dataset[0], model, "cpu").axes[0].get_ylabel()


def test_results_from_a_checkpoint(clips, tmp_path):
    model = SiamMAE(MAEEncoder(32, 8, 48, 1, 4), 0.75, decoder_size=(32, 1, 4))
    saved = dict(model=model.state_dict(), config=model.config, epoch=7, run="run", settings={}, run_config=None)
    save_checkpoint(tmp_path / "checkpoints" / "run" / "last.pt", saved)
    video = np.random.default_rng(0).integers(0, 256, (3, 2, 3, 48, 48), dtype=np.uint8)  # another size than trained
    save_samples(tmp_path / "samples.pickle", video, np.array([[0, 0.5]] * 3), ["a", "b", "c"])
    data = make_loader(get_kinetics_dataset(clips, image_size=32, augment=False), 4, shuffle=False, drop_last=False)
    for _ in range(2):
        figures = plot_results_from_checkpoint("run", data, "cpu", tmp_path / "samples.pickle", root=tmp_path)
    first, second = read_losses(tmp_path / "test_losses" / "run.txt")
    assert first == second and first.epoch == 7 and len(first.losses) == 2
    assert [len(f.axes) for f in figures] == [15] and "epoch 7" in figures[0].get_suptitle()
    assert (tmp_path / "test_losses" / "run_7.png").stat().st_size > 10_000


def test_curves_of_several_runs(tmp_path):
    runs = {"one": [EpochLoss(1, 0.9, [1.0, 0.8]), EpochLoss(2, 0.7, [0.7, 0.7])], "other": [EpochLoss(None, 0.5, [])]}
    figure = loss_figure(runs)
    (axis,) = figure.axes
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["one", "other"]
    means = [line.get_ydata().tolist() for line in axis.lines if not line.get_label().startswith("_")]
    assert means == [[0.9, 0.7], [0.5]]
    assert save_figure(figure, tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
