"""Measures of uncertainty by loops and on cases with a known answer; the maps; heads on a frozen model; the command."""

import json
import math
import shutil
from statistics import NormalDist

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from cli.main import main
from common.errors import InputError
from mae.masking import mask_noise, random_masking
from mae.models_mae import MAEEncoder
from ml.checkpoints import save_checkpoint
from ml.extensions import calibration
from ml.extensions.uncertainty import (
    Evidence,
    Map,
    Member,
    VarianceHeads,
    load_heads,
    save_heads,
    total_variance,
    train_heads,
    uncertainty_maps,
)
from ml.pair_models import strangers
from ml.SiamMAE import SiamMAE

N = 12


def small(seed=0, **changes):
    torch.manual_seed(seed)
    return SiamMAE(MAEEncoder((24, 32), 8, 16, 1, 2), 0.5, decoder_size=(16, 1, 2), **changes).eval()


def batch(B=3):
    draw = torch.Generator().manual_seed(1)
    video = torch.randint(256, (B, 2, 3, 24, 32), generator=draw).byte()
    return {"video": video, "seed": torch.arange(B) + 7, "path": [f"v{k}" for k in range(B)]}


class TestMeasures:
    rng = np.random.default_rng(0)
    squared, variance = rng.gamma(1, size=250), rng.gamma(1, size=250)

    def test_sparsification_and_ause_by_loops(self):
        area, n = 0.0, len(self.squared)
        for k in range(100):
            left = []
            for by in (self.variance, self.squared):
                kept = sorted(range(n), key=lambda i, by=by: by[i])[: n - k * n // 100]
                left.append(math.sqrt(sum(self.squared[i] for i in kept) / len(kept)))
            area += (left[0] - left[1]) / math.sqrt(self.squared.mean()) / 100
        assert calibration.ause(self.squared, self.variance) == pytest.approx(area, rel=1e-12)
        assert calibration.ause(self.squared, 3 * self.squared) == 0
        assert calibration.sparsification(self.squared, self.variance)[0] == 1

    def test_a_constant_is_worth_what_chance_is(self):
        shuffled = [calibration.ause(self.squared, self.rng.permutation(250)) for _ in range(200)]
        assert calibration.ause(self.squared, np.ones(250)) == pytest.approx(np.mean(shuffled), abs=0.05)

    def test_spearman_is_scipys(self):
        expected = stats.spearmanr(self.squared, self.variance).statistic
        assert calibration.spearman(self.squared, self.variance) == pytest.approx(expected)
        assert math.isnan(calibration.spearman(self.squared, np.ones(250)))

    def test_ence_by_loops(self):
        order, total = sorted(range(250), key=lambda i: self.variance[i]), 0.0
        for b in range(10):
            part = order[25 * b : 25 * b + 25]
            rmv, rmse = (math.sqrt(sum(x[i] for i in part) / 25) for x in (self.variance, self.squared))
            total += abs(rmv - rmse) / rmv / 10
        assert calibration.ence(self.squared, self.variance) == pytest.approx(total, rel=1e-12)

    def test_coverage_by_loops_and_nll_is_the_normal_densitys(self):
        for level, found in zip(calibration.LEVELS, calibration.coverage(self.squared, self.variance), strict=True):
            z = NormalDist().inv_cdf((1 + level) / 2)
            inside = [math.sqrt(e) <= z * math.sqrt(v) for e, v in zip(self.squared, self.variance, strict=True)]
            assert found == sum(inside) / 250
        expected = -stats.norm.logpdf(np.sqrt(self.squared), scale=np.sqrt(self.variance)).mean()
        assert calibration.nll(self.squared, self.variance) == pytest.approx(expected)

    def test_true_variances_are_calibrated_and_a_factor_brings_back_scaled_ones(self):
        variance = self.rng.uniform(0.5, 2, 100_000)
        squared = variance * self.rng.standard_normal(100_000) ** 2
        assert calibration.ence(squared, variance) < 0.02 and calibration.coverage_error(squared, variance) < 0.005
        assert calibration.ence(squared, 9 * variance) > 0.5
        factor = calibration.recalibration(squared, 9 * variance)
        assert factor == pytest.approx(1 / 9, rel=0.02)
        losses = [calibration.nll(squared, a * factor * 9 * variance) for a in (0.9, 1.0, 1.1)]
        assert losses[1] == min(losses)


def test_total_variance_is_that_of_the_mixture():
    means, variances = torch.tensor([[0.0, 1.0], [4.0, 1.0]]), torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    draws = torch.randn(200_000, 2, 2, generator=torch.Generator().manual_seed(0)) * variances.sqrt() + means
    mean, variance = total_variance(means, variances)
    assert mean.tolist() == [2.0, 1.0] and variance.tolist() == [6.0, 3.0]
    torch.testing.assert_close(draws.flatten(0, 1).var(0), variance, rtol=0.02, atol=0)


@torch.no_grad()
def test_the_maps_by_hand():
    model, other, given = small(), small(5), batch()
    heads = [VarianceHeads(16, 192), VarianceHeads(16, 192)]
    for each in heads:
        for layer in (each.patch.layers[-1], each.pixel.layers[-1]):
            torch.nn.init.normal_(layer.weight)
    mask, maps = uncertainty_maps([Member(model, heads[0]), Member(other, heads[1])], given, draws=3)
    frames = model.normalize(given["video"])
    noise = mask_noise(given["seed"], N)
    assert torch.equal(mask, random_masking(noise, 0.5)[1])
    target, prediction = model.target(frames), model.predict(frames, noise)[0]
    assert maps["head, pixel"].values.shape == (3, N, 192) and maps["head, patch"].values.shape == (3, N, 1)
    torch.testing.assert_close(maps["constant"].error, (target - prediction).square())
    drawn = [model.predict(frames, mask_noise(given["seed"] + k, N)) for k in (1, 2, 3)]
    for b in range(3):
        for n in range(N):
            asked = torch.stack([p[b, n] for p, m in drawn if m[b, n]]) if any(m[b, n] for _, m in drawn) else None
            if asked is not None:
                spread = maps["spread over visible sets"].values[b, n]
                torch.testing.assert_close(spread, asked.var(0, correction=0).clamp(min=1e-6), rtol=1e-3, atol=1e-6)
    fooled = model.predict(torch.stack([frames[strangers(given["path"]), 0], frames[:, 1]], 1), noise)[0]
    gain = (target - prediction).square().mean(-1) - (target - fooled).square().mean(-1)
    torch.testing.assert_close(maps["f1 against a wrong f1"].values[..., 0], gain)
    mean = (prediction + other.predict(frames, noise)[0]) / 2
    torch.testing.assert_close(maps["ensemble of 2"].error, (target - mean).square())
    apart = (prediction - other.predict(frames, noise)[0]).square() / 4
    assert (maps["ensemble of 2"].values > apart).all()
    assert {name for name, each in maps.items() if each.variance} == {
        "head, patch", "head, pixel", "spread over visible sets", "ensemble of 2", "constant"
    }  # fmt: skip


def test_half_of_the_videos_calibrate_and_the_others_measure():
    """Videos of which one half has errors four times as large as said, the other as said."""
    evidence, rng = Evidence(), torch.Generator().manual_seed(0)
    for video, scale in (("a", 4.0), ("b", 1.0), ("c", 4.0), ("d", 1.0)):
        values = torch.rand(1, 500, 1, generator=rng) + 0.5
        error = scale * values * torch.randn(1, 500, 20, generator=rng).square()
        evidence.add(torch.ones(1, 500), {"known": Map(values, error, True), "rank": Map(-values, error)}, [video])
    found = evidence.measure()
    assert found["known"]["factor"] == pytest.approx(4, rel=0.03)
    assert found["known"]["coverage error"] < 0.01 < 0.2 < found["known"]["coverage error recalibrated"]
    assert found["known"]["Spearman"] == pytest.approx(-found["rank"]["Spearman"]) and found["known"]["AUSE"] < 0.2
    assert "NLL" not in found["rank"]


def test_heads_learn_on_a_frozen_model_and_are_read_back(tmp_path):
    model = small()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    told = []
    heads, again = (
        train_heads(model, [batch()] * 60, steps=60, lr=1e-2, told=lambda *each: told.append(each)) for _ in range(2)
    )
    assert told[59][1] < told[0][1] and told[59][2] < told[0][2]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(heads.parameters(), again.parameters(), strict=True))
    save_heads(tmp_path / "heads.pt", heads, {"weights": "w"})
    state = load_heads(tmp_path / "heads.pt", "w").state_dict()
    assert all(torch.equal(value, state[name]) for name, value in heads.state_dict().items())
    with pytest.raises(InputError, match="trained on other weights"):
        load_heads(tmp_path / "heads.pt", "x")
    with pytest.raises(InputError, match="ended after 2 of 5 steps"):
        train_heads(model, [batch()] * 2, steps=5)


@pytest.mark.slow
def test_the_command(clips, tmp_path, monkeypatch, capsys):
    model = SiamMAE(MAEEncoder(32, 8, 16, 1, 2), 0.75, decoder_size=(16, 1, 2), mask_strategy="hard")
    save_checkpoint(tmp_path / "1.pt", dict(model=model.state_dict(), config=model.config, epoch=1, step=1, run="tiny"))
    out = tmp_path / "out"
    asked = [str(tmp_path / "1.pt"), "--data", str(clips), "--draws", "2", "--visits", "2", "--batch-size", "4"]
    assert main(["uncertainty", *asked, "--out", str(out), "--steps", "3"]) == 0
    assert "| head, patch |" in capsys.readouterr().out
    found = json.loads((out / "uncertainty.json").read_text())
    assert found["videos"] == 4 and {"head, pixel", "head trained along (hard)", "texture of f1"} <= set(found["maps"])
    assert len(found["maps"]["constant"]["curve"]) == 100
    for name in ("heat.png", "curves.png"):
        with Image.open(out / name) as picture:
            assert min(picture.size) > 200
    assert main(["uncertainty", *asked, "--out", str(out)]) == 2
    assert "holds files already" in capsys.readouterr().err
    monkeypatch.setattr("ml.plots.save_figure", lambda *given, **settings: None)  # they were drawn once
    again = ["--out", str(tmp_path / "again"), "--heads", str(out / "heads.pt")]
    assert main(["uncertainty", *asked, *again]) == 0
    assert json.loads((tmp_path / "again" / "uncertainty.json").read_text())["videos"] == 6
    assert main(["uncertainty", *asked, "--out", str(tmp_path / "x"), "--draws", "0"]) == 2
    assert "draws 0" in capsys.readouterr().err


def test_heads_learn_from_a_single_video(clips, tmp_path, monkeypatch):
    """Only to measure takes a second one; training once waited for it for ever."""
    model = SiamMAE(MAEEncoder(32, 8, 16, 1, 2), 0.75, decoder_size=(16, 1, 2))
    save_checkpoint(tmp_path / "1.pt", dict(model=model.state_dict(), config=model.config, epoch=1, step=1, run="tiny"))
    (tmp_path / "one").mkdir()
    first = sorted(path for path in clips.iterdir() if path.suffix == ".mp4")[0]
    shutil.copy(first, tmp_path / "one")
    others = tmp_path / "others"
    others.mkdir()
    for path in sorted(path for path in clips.iterdir() if path.suffix == ".mp4" and path != first):
        shutil.copy(path, others)
    asked = [str(tmp_path / "1.pt"), "--data", str(others), "--train-data", str(tmp_path / "one")]
    monkeypatch.setattr("ml.plots.save_figure", lambda *given, **settings: None)
    sizes = ["--draws", "2", "--visits", "2", "--batch-size", "4", "--steps", "2"]
    assert main(["uncertainty", *asked, *sizes, "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "heads.pt").is_file()
