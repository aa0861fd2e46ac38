"""Several futures, roll-outs, a second frame to look into, and frames turned each by its own angle."""

import numpy as np
import pytest
import torch
from PIL import Image

from cli.main import main
from common.errors import InputError
from dataset_loader import get_kinetics_dataset
from dataset_loader.random_temporal_subsample import ChosenGaps, RandomTemporalSubsample, WithSecond
from dataset_loader.transforms import Augmentation, Crop, View, apply_view
from mae.masking import mask_noise, random_masking
from mae.models_mae import MAEEncoder
from mae.patches import normalize_patches
from ml.checkpoints import save_checkpoint
from ml.config import RunConfig
from ml.extensions.rollout import roll_out
from ml.SiamMAE import SiamMAE, build_model

TIMES = np.arange(60) / 30


def small(**changes):
    torch.manual_seed(0)
    model = SiamMAE(MAEEncoder((16, 24), 8, 16, 1, 2), 0.5, decoder_size=(16, 1, 2), **changes).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def video(B, F):
    return torch.randint(256, (B, F, 3, 16, 24), generator=torch.Generator().manual_seed(1)).byte()


def test_chosen_gaps_are_those_and_the_past_is_anywhere():
    sampler, pasts = ChosenGaps([0.13, 0.5, 1.6]), set()
    for seed in range(60):
        (drawn,) = sampler.draw(TIMES, np.random.default_rng(seed))
        assert np.abs(TIMES[drawn[1:]] - TIMES[drawn[0]] - [0.13, 0.5, 1.6]).max() < 1 / 59
        pasts.add(int(drawn[0]))
    assert min(pasts) < 2 and 9 < max(pasts) <= 12 and len(pasts) > 6
    with pytest.raises(InputError, match="no two frames 3 s apart"):
        ChosenGaps([3.0]).draw(TIMES, np.random.default_rng(0))
    for wrong in ([0.5, 0.1], [0.0, 1.0], [0.5, 0.5]):
        with pytest.raises(InputError, match="ascending ones above 0"):
            ChosenGaps(wrong)


def test_a_second_frame_stands_before_the_one_to_predict():
    pairs = RandomTemporalSubsample(4, 48, futures=2)
    for seed in range(40):
        one, two = (WithSecond(pairs, kind).draw(TIMES, np.random.default_rng(seed))[0] for kind in ("past", "later"))
        assert one[0] < one[1] < one[2] and two.tolist() == [one[0], one[2], one[1]]
    with pytest.raises(InputError, match="expected past or later"):
        WithSecond(pairs, "both")
    still = np.array([0.0, 0.2])
    with pytest.raises(InputError, match="no three frames"):
        WithSecond(pairs, "past").draw(still, np.random.default_rng(0))


def test_the_decoder_reads_both_frames_and_order_means_nothing_to_it():
    model, frames, noise = small(pasts=2), video(2, 3), torch.rand(2, 6)
    loss, prediction, mask = model(frames, noise=noise)
    assert prediction.shape == (2, 6, 192) and mask.shape == (2, 6) and model.config["pasts"] == 2
    swapped = model(frames[:, [1, 0, 2]], noise=noise)[1]
    torch.testing.assert_close(swapped, prediction)
    pixels = model.normalize(frames).requires_grad_()
    model.predict(pixels, noise)[0].square().sum().backward()
    changed = pixels.grad.abs().sum((2, 3, 4))
    assert (changed[:, :2] > 0).all()
    torch.testing.assert_close(
        model.target(model.normalize(frames)), small().target(model.normalize(frames[:, [0, 2]]))
    )
    again = build_model(model.config)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.eval()(frames, noise=noise)[1], prediction)
    with pytest.raises(InputError, match=r"\[B, 3, 3, H, W\]: two frames and f2"):
        model(frames[:, :2], noise=noise)
    with pytest.raises(InputError, match="2 with the siamese one"):
        small(pasts=2, encoder_kind="joint")
    row = {"seed": torch.arange(2), "time": torch.tensor([[0.0, 1.0, 0.5]] * 2), "path": ["a", "b"]}
    compared = model.compare(frames, row)
    torch.testing.assert_close(compared.guesses["copy"], small().target(model.normalize(frames[:, [0, 0]])))
    assert compared.parts["short"].sum() == compared.parts["all"].sum() > 0


def test_one_frame_twice_says_what_it_says_once():
    """Twice the same keys and values: the softmax over both halves is that over one."""
    one, two = small(), small(pasts=2)
    two.load_state_dict(one.state_dict())
    pair, noise = video(2, 2), torch.rand(2, 6)
    torch.testing.assert_close(two(pair[:, [0, 0, 1]], noise=noise)[1], one(pair, noise=noise)[1], rtol=0, atol=1e-5)


def test_it_is_trained_by_the_command_and_the_configuration_agrees(clips, quick, tmp_path):
    config = RunConfig().replace(second="later", futures=1)
    assert config.model_arguments["pasts"] == 2 and config.data.frames == 3
    assert "pasts" not in RunConfig().model_arguments
    with pytest.raises(InputError, match="two frames have one f2"):
        RunConfig().replace(second="past", futures=2)
    sample = get_kinetics_dataset(clips, image_size=32, second="later", min_gap=4, max_gap=20)[0]
    assert sample["video"].shape == (3, 3, 32, 32) and sample["time"][0] < sample["time"][2] < sample["time"][1]
    line = ["train", "--data", clips, "--root", tmp_path, "--preset", "smoke", "--epochs", "1", "--image-size", "32"]
    line += ["--second", "later", "--rotation", "45", "--rotation-each", "--mask-strategy", "hard"]
    line += ["--device", "cpu"]
    assert quick(*line) == 0
    assert list((tmp_path / "checkpoints").glob("*/1.pt"))


def test_frames_turn_alike_or_each_by_its_own_angle(clips):
    plain = get_kinetics_dataset(clips, image_size=32, seed=3)
    for each in (False, True):
        turned = get_kinetics_dataset(clips, image_size=32, seed=3, rotation=45.0, rotation_each=each, futures=2)
        views = turned._views(turned._mixes["video"].pairings[0], 96, 128, 3, np.random.default_rng(5))
        degrees = [view.degrees for view in views]
        assert len(set(degrees)) == (3 if each else 1) and all(0 < abs(d) <= 45 for d in degrees)
        assert len({view.crop for view in views}) == 1
        assert turned[0]["video"].shape == (3, 3, 32, 32)
    off = get_kinetics_dataset(clips, image_size=32, seed=3, rotation=0.0, rotation_each=True)
    assert torch.equal(plain[1]["video"], off[1]["video"])


def test_a_view_of_90_degrees_is_a_quarter_turn():
    frames = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), dtype=np.uint8)
    turned = apply_view(frames, View(Crop(0, 0, 16, 16), degrees=90.0), 16)
    expected = torch.from_numpy(np.rot90(frames[0]).copy()).permute(2, 0, 1)
    assert torch.equal(turned[0], expected)
    with pytest.raises(InputError, match="rotation is 200"):
        Augmentation(rotation=200.0)


def test_a_roll_out_begins_with_a_plain_prediction_and_goes_on_from_it():
    model, frames = small(norm_pix_loss=True), video(1, 4)[0]
    sample = {"video": frames, "time": torch.tensor([0.0, 0.1, 0.2, 0.3]), "seed": torch.tensor(3)}
    found = roll_out(sample, model)
    errors = found.errors
    assert errors["roll-out"][0] == errors["from f1"][0] == errors["from the frame before"][0]
    hidden = random_masking(mask_noise(torch.tensor([4]), 6), 0.5)[1][0] > 0  # seed 3, first step
    pixels = model.normalize(frames)
    target = normalize_patches(model.patchify(pixels[1:2]))[0]
    copied = normalize_patches(model.patchify(pixels[:1]))[0]
    assert errors["copy"][0] == pytest.approx((copied - target)[hidden].square().mean().item(), rel=1e-4)
    predicted = model.predict(pixels[None, :2], mask_noise(torch.tensor([4]), 6))[0][0]
    assert errors["roll-out"][0] == pytest.approx((predicted - target)[hidden].square().mean().item(), rel=1e-4)
    assert len(errors["copy"]) == 3 and errors["roll-out"][1] != errors["from the frame before"][1]
    assert all(error == pytest.approx(191 / 192, abs=0.01) for error in errors["mean"])
    assert torch.equal(found.steps[1].past, found.steps[0].pasted[0])
    whole = found.joined()
    assert whole.frames.shape == (3, 3, 16, 24) and whole.numbers == [1, 2, 3]
    still = roll_out({**sample, "video": frames[:1].expand(4, -1, -1, -1)}, model)
    assert still.errors["copy"] == pytest.approx([0, 0, 0], abs=1e-9)


def test_plots_of_several_futures_and_roll_outs(clips, tmp_path, capsys):
    model = SiamMAE(MAEEncoder(32, 8, 16, 1, 2), 0.75, decoder_size=(16, 1, 2))
    saved = dict(model=model.state_dict(), config=model.config, epoch=1, step=1, run="tiny")
    save_checkpoint(tmp_path / "1.pt", saved)
    asked = ["plot", str(tmp_path / "1.pt"), "--data", str(clips), "--count", "2"]
    assert main([*asked, "--gaps", "0.13,0.5,1,1.6", "--out", str(tmp_path / "futures.png")]) == 0
    assert main([*asked, "--gaps", "0.13,0.5,1", "--out", str(tmp_path / "futures.gif")]) == 0
    with Image.open(tmp_path / "futures.gif") as film, Image.open(tmp_path / "futures.png") as figure:
        assert film.n_frames == 3 and figure.width > 600
    assert main([*asked, "--rollout", "3", "--gaps", "0.2", "--out", str(tmp_path / "rollout.png")]) == 0
    assert "| after | roll-out | from f1 | from the frame before | copy | mean |" in capsys.readouterr().out
    for wrong, said in ((["--gaps", "soon"], "expected seconds"), (["--gaps", "0.1,0.2", "--rollout", "2"], "one gap")):
        assert main([*asked, *wrong, "--out", str(tmp_path / "x.png")]) == 2
        assert said in capsys.readouterr().err
