"""Pictures of clips: predicted frames, visible tubelets pasted in, nothing leaked unless said; sheets and films."""

import math

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from dataset_loader.preparing.encoding import write_video
from mae.masking import fill_from_visible
from ml.plots import animation, plot_sample, reconstruction_figure, save_gif
from ml.reconstruction import reconstruct
from tests.ml.small import tiny_clips as tiny

FRAMES, SIZE, STEPS = 6, (24, 32), 3  # 3 steps of 3×4 places


def clip(seed=0, frames=FRAMES):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (frames, 3, *SIZE), dtype=torch.uint8, generator=generator)


def hidden_pixels(model, video, seed=3):
    """Which pixels of which frames are hidden, [F, 1, H, W], place by place."""
    mask = model(video[None], seeds=torch.tensor([seed]))[2][0]
    pixels = torch.zeros(len(video), 1, *SIZE, dtype=torch.bool)
    for n in mask.nonzero().flatten().tolist():
        step, row, column = n // 12, n // 4 % 3, n % 4
        pixels[2 * step : 2 * step + 2, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = True
    return pixels


@pytest.mark.parametrize("kind", ["agnostic", "tube", "prospective"])
@pytest.mark.parametrize("predicted", [3, 6])
def test_visible_tubelets_are_pasted_in_and_hidden_ones_are_grey(kind, predicted):
    model, video = tiny(mask_kind=kind, pred_t_dim=predicted), clip()
    row = reconstruct({"video": video, "time": torch.arange(6) * 0.1, "seed": 3}, model)
    numbers = [0, 2, 5] if predicted == 3 else list(range(6))
    assert row.numbers == numbers and row.time == pytest.approx([0.1 * n for n in numbers])
    frames, hidden = video[numbers].float() / 255, hidden_pixels(model, video)[numbers].expand(-1, 3, -1, -1)
    torch.testing.assert_close(row.frames, frames)
    torch.testing.assert_close(row.pasted[~hidden], frames[~hidden])
    torch.testing.assert_close(row.pasted[hidden], row.raw[hidden])
    assert (row.masked[hidden] == 0.5).all() and torch.equal(row.masked[~hidden], row.frames[~hidden])
    assert row.hidden == pytest.approx(hidden.float().mean().item()) and row.mask_kind == kind
    assert row.loss == pytest.approx(model(video[None], seeds=torch.tensor([3]))[0].item())


@pytest.mark.parametrize("kind", ["agnostic", "frame", "retrospective"])
def test_the_default_picture_tells_nothing_of_the_hidden_pixels(kind):
    """Other hidden pixels, the same picture, unless the caption says otherwise."""
    model, video = tiny(mask_kind=kind), clip()
    other = torch.where(hidden_pixels(model, video), clip(1) // 3, video)
    one, two = (reconstruct({"video": v, "seed": 3}, model) for v in (video, other))
    assert torch.equal(one.raw, two.raw) and torch.equal(one.pasted, two.pasted) and "visible" in one.caption
    one, two = (reconstruct({"video": v, "seed": 3}, model, statistics="target") for v in (video, other))
    assert not torch.equal(one.raw, two.raw) and "HIDDEN" in one.caption
    assert "plain pixels" in reconstruct(video, tiny(norm_pix_loss=False)).caption


def test_a_perfect_prediction_looks_like_the_frames():
    """With the target's own statistics, de-normalising undoes the normalising; with plain pixels nothing is needed."""
    video = clip()
    for norm_pix_loss, mean in ((True, 0.45), (False, 0.45), (False, 0.3)):
        model = tiny(norm_pix_loss=norm_pix_loss, pixel_mean=(mean, 0.4, 0.5))
        target = model.target(model.pixels(video[None]))
        model.forward_decoder = lambda *args, target=target: target
        row = reconstruct(video, model, statistics="target")
        torch.testing.assert_close(row.raw, video[[0, 2, 5]].float() / 255, rtol=0, atol=1e-4)
        assert row.loss == pytest.approx(0, abs=1e-6)


def test_guesses_from_visible_places_by_nested_loops():
    h, w, values = 3, 4, torch.rand(1, 36, 1)
    mask = (torch.rand(1, 36, generator=torch.Generator().manual_seed(0)) < 0.8).float()
    guessed = fill_from_visible(values, mask, (3, h, w))
    for n in range(36):
        here, total, weights = (n // 12, n // 4 % 3, n % 4), 0.0, 0.0
        for k in range(36):
            if mask[0, k] == 0:
                there = (k // 12, k // 4 % 3, k % 4)
                weight = math.exp(-0.5 * sum((a - b) ** 2 for a, b in zip(here, there, strict=True)))
                total, weights = total + weight * values[0, k, 0].item(), weights + weight
        expected = total / weights if mask[0, n] else values[0, n, 0].item()
        assert guessed[0, n, 0].item() == pytest.approx(expected, abs=1e-5)


def test_sheets_take_what_data_sets_give():
    model = tiny()
    batch = {"video": torch.stack([clip(), clip(1)]), "time": torch.arange(12).view(2, 6) / 10, "seed": [7, 8]}
    single = {"video": clip(), "time": np.arange(6) / 10, "seed": 7}
    rows = [reconstruct(sample, model) for sample in (batch, single, batch["video"])]
    assert torch.equal(rows[0].pasted, rows[1].pasted) and rows[0].time == pytest.approx(rows[1].time)
    assert not torch.equal(rows[0].masked, rows[2].masked) and rows[2].time is None
    figure = plot_sample(batch, model, "cpu")
    assert isinstance(figure, Figure) and len(figure.axes) == 9 and "visible" in figure.get_supxlabel()
    assert [a.get_title() for a in figure.axes[:3]] == ["0.00 s", "0.20 s", "0.50 s"]
    longer = reconstruct(clip(frames=8), model)  # another length than the model's
    figure = reconstruction_figure([rows[2], longer], titles=["short", "long"], heading="Two clips")
    assert len(figure.axes) == 9 + 12 and figure.axes[0].get_title() == "frame 0"
    assert figure.subfigs[1].get_suptitle() == f"long: agnostic mask, 75.0% hidden, loss {longer.loss:.3f}"
    assert figure.get_suptitle() == "Two clips"


def test_films(tmp_path):
    """Original, as it is seen, predicted, side by side; as GIF and, through the encoder of clips, as a video."""
    model = tiny()
    row = reconstruct({"video": clip(), "seed": 3}, model)
    film = animation([row, row], least_height=40, gap=3)
    assert film.shape == (3, 3, 2 * 48 + 4, 3 * 64 + 6) and film.dtype == torch.uint8  # each pixel twice, sides even
    for k, part in enumerate((row.frames, row.masked, row.pasted)):
        corner = film[:, :, :48:2, k * 67 : k * 67 + 64 : 2]
        assert torch.equal(corner, (part * 255).round().to(torch.uint8))
    path = save_gif(film, tmp_path / "clip.gif", seconds=0.5)
    with Image.open(path) as gif:
        assert (gif.n_frames, gif.info["duration"], gif.info["loop"], gif.size) == (3, 500, 0, (198, 100))
        gif.seek(1)
        shown = torch.from_numpy(np.array(gif.convert("RGB"))).permute(2, 0, 1).float()
    assert (shown - film[1].float()).abs().mean() < 12  # a palette of 256 colours
    write_video(tmp_path / "clip.mp4", film.permute(0, 2, 3, 1).numpy(), np.arange(3) * 0.5)
    assert (tmp_path / "clip.mp4").stat().st_size > 500
