"""Mask strategies: which patches they hide, by hand; what their heads learn; off by default; resume stays exact."""

import pytest
import torch

from common.errors import InputError
from mae.masking import random_masking, visible_count
from mae.patches import normalize_patches
from ml.checkpoints import load_model, load_run
from ml.extensions.heads import PatchHead, beta_nll, relative_loss, variance_loss
from ml.extensions.hiding import STRATEGIES, Step, largest_first
from tests.ml.small import Pairs, Stop, losses, run, tiny
from tests.slowly import slowly

TAUGHT = [name for name, strategy in STRATEGIES.items() if strategy.lesson]
TRAINED = ("decoder.pred", "hiding.head")


def model_with(strategy, **changes):
    """4 patches of 8 pixels, of which 3 are hidden."""
    return tiny(trained=TRAINED, mask_strategy=strategy, mask_ratio=0.75, **changes)


def pairs(count=3):
    return torch.randint(256, (count, 2, 3, 16, 16), generator=torch.Generator().manual_seed(1)).byte()


@pytest.mark.parametrize("progress", [0.0, 0.3, 1.0])
def test_the_largest_scores_are_hidden_and_of_the_rest_those_that_chance_hides(progress):
    torch.manual_seed(0)
    noise, scores, N, ratio = torch.rand(5, 12), torch.rand(5, 12), 12, 0.75
    step = Step(progress, N - visible_count(N, ratio))
    _, mask, _ = random_masking(largest_first(noise, step, scores), ratio)
    for row in range(5):
        by_score = sorted(range(N), key=lambda n: -scores[row, n])[: int(9 * 0.5 * progress)]
        rest = [n for n in sorted(range(N), key=lambda n: -noise[row, n]) if n not in by_score]
        hidden = {*by_score, *rest[: 9 - len(by_score)]}
        assert set(mask[row].nonzero().flatten().tolist()) == hidden


def test_what_moves_is_hidden_and_what_stands_still_by_the_control():
    """f2 is f1 but for one patch. Two of three hidden patches are chosen at the end of training: int(3 · 0.5) = 1."""
    video = pairs(2)
    video[:, 1] = video[:, 0]
    video[0, 1, :, 8:, :8], video[1, 1, :, :8, 8:] = pairs(1)[0, 1, :, 8:, :8], pairs(1)[0, 1, :, :8, 8:]
    for name, hides in (("motion", True), ("still", False)):
        model = model_with(name).train()
        error = model.hiding.scores(model, model.normalize(video))
        past, future = (normalize_patches(model.patchify(model.normalize(video[:, f]))) for f in (0, 1))
        torch.testing.assert_close(error, (future - past).square().mean(-1))
        assert error.argmax(1).tolist() == [2, 1] and (error > 0).sum() == 2
        model.before_step(9, 10)
        masks = [
            random_masking(model.draw_noise(video, torch.tensor([k, k + 50])), 0.75)[1] for k in range(40)
        ]  # 1 patch visible
        shown = torch.stack([mask[[0, 1], [2, 1]] for mask in masks])
        assert (shown.min() == 1) if hides else (shown.mean() < 0.75)


def test_off_by_default_and_random_in_evaluation():
    video, seeds = pairs(), torch.tensor([5, 6, 7])
    plain = tiny(mask_ratio=0.75)
    expected = plain.train().draw_noise(video, seeds)
    assert plain.hiding is None and "mask_strategy" not in plain.config
    for name in STRATEGIES:
        model = model_with(name)
        model.before_step(9, 10)
        assert torch.equal(model.eval().draw_noise(video, seeds), expected)
        assert torch.equal(model.train().draw_noise(video, seeds), expected) == (name == "random")
        (loss, *_), (same, *_) = (m.eval()(video, seeds=seeds) for m in (model, plain))
        assert torch.equal(loss, same)


@pytest.mark.parametrize("name", TAUGHT)
def test_a_mask_does_not_depend_on_the_batch_and_so_not_on_the_rank(name):
    torch.manual_seed(0)
    video, seeds, model = pairs(6), torch.arange(6), model_with(name).train()
    torch.nn.init.normal_(model.hiding.teacher["head"].layers[-1].weight)
    model.before_step(9, 10)
    whole = model.draw_noise(video, seeds)
    parts = [model.draw_noise(video[k::2], seeds[k::2]) for k in (0, 1)]
    assert torch.equal(whole[0::2], parts[0]) and torch.equal(whole[1::2], parts[1])
    assert not torch.equal(whole, model.eval().draw_noise(video, seeds))


def test_the_reported_loss_is_the_models_own_and_features_are_not_touched():
    video, noise = pairs(), torch.rand(3, 4)
    found = {}
    for name in ("random", *TAUGHT):
        model = tiny(trained="", mask_strategy=name, mask_ratio=0.75).train()
        loss, *_ = model(video, noise=noise)
        loss.backward()
        found[name] = loss.detach(), {n: p.grad for n, p in model.named_parameters() if "hiding" not in n}
        head = [p.grad for n, p in model.named_parameters() if n.startswith("hiding.head.")]
        assert name == "random" or any(g is not None and g.abs().sum() > 0 for g in head)
    for name in TAUGHT:
        assert torch.equal(found[name][0], found["random"][0])
        for key, gradient in found["random"][1].items():
            assert gradient is None or torch.equal(gradient, found[name][1][key])


def test_the_relative_loss_by_loops():
    torch.manual_seed(0)
    scores, error = torch.randn(2, 5), torch.tensor([[1.0, 2, 2, 0, 9], [3, 1, 4, 1, 5]])
    mask = torch.tensor([[1.0, 1, 1, 0, 1], [1, 1, 0, 1, 1]])
    total, count = 0.0, 0
    for b in range(2):
        for i in range(5):
            for j in range(5):
                if mask[b, i] and mask[b, j] and error[b, i] != error[b, j]:
                    right = torch.sigmoid(scores[b, i] - scores[b, j])
                    total -= (right if error[b, i] > error[b, j] else 1 - right).log().item()
                    count += 1
    assert relative_loss(scores, error, mask).item() == pytest.approx(total / count, rel=1e-5)


def test_the_nll_is_torchs_and_beta_weighs_it_without_its_gradient():
    torch.manual_seed(0)
    target, mean, s = torch.randn(3, 4), torch.randn(3, 4), torch.randn(3, 4, requires_grad=True)
    error = (target - mean).square()
    theirs = torch.nn.GaussianNLLLoss(reduction="none")(mean, target, s.exp())
    torch.testing.assert_close(beta_nll(error, s, 0.0), theirs)
    torch.testing.assert_close(beta_nll(error, s, 0.5), theirs * s.exp().sqrt())
    (weighted,) = torch.autograd.grad(beta_nll(error, s, 0.5).sum(), s)
    torch.testing.assert_close(weighted, 0.5 * (1 - error / s.exp()) * s.exp().sqrt())
    assert variance_loss(s, error, torch.ones(3, 4)).item() == pytest.approx(beta_nll(error, s).mean().item(), rel=1e-6)


@pytest.mark.parametrize("lesson", [variance_loss, *slowly(relative_loss)])
def test_a_head_learns_which_patches_are_wrong(lesson):
    torch.manual_seed(0)
    head, features, mask = PatchHead(8), torch.randn(16, 10, 8), torch.ones(16, 10)
    error = features[..., 0].exp()
    optimizer = torch.optim.Adam(head.parameters(), 1e-2)
    for _ in range(300):
        optimizer.zero_grad()
        lesson(head(features)[..., 0], error, mask).backward()
        optimizer.step()
    scores = head(features)[..., 0]
    alike = (scores[:, :, None] > scores[:, None]) == (error[:, :, None] > error[:, None])
    assert alike.float().mean() > 0.85  # an untrained head: 0.55


@pytest.mark.parametrize("name", ["hard", "motion", *slowly(*sorted(STRATEGIES.keys() - {"random", "hard", "motion"}))])
def test_resume_is_exact(name, tmp_path):
    """Stopped in the fourth of six steps, after which the scores already choose: weights, teacher and losses alike."""
    found = []
    for root, stop in ((tmp_path / "whole", None), (tmp_path / "cut", (2, 1))):
        if stop:
            with pytest.raises(Stop):
                run(root, Pairs(stop=stop), model_with(name), save_minutes=0, clip_grad=1.0)
        model = model_with(name, seed=3 if stop else 0)
        run_name, steps = run(root, model=model, resume="auto", save_minutes=0, clip_grad=1.0)
        found.append((losses(steps), load_run(root / "checkpoints" / run_name / "last.pt")["model"]))
    (whole, state), (cut, other) = found
    assert whole == cut and len(whole) == 6
    assert state.keys() == other.keys() and all(torch.equal(state[key], other[key]) for key in state)
    assert any(key.startswith("hiding.teacher.") for key in state) == (name in TAUGHT)
    if (
        name in TAUGHT
    ):  # in the last two of six steps they choose one of three hidden patches, which may be hidden anyway
        assert all(state[f"hiding.{part}.layers.3.weight"].any() for part in ("head", "teacher.head"))
    else:
        _, plain = run(tmp_path / "plain", model=model_with("random"), clip_grad=1.0)
        assert losses(plain)[0] == whole[0] and losses(plain) != whole


def test_a_checkpoint_loads_with_its_teacher_which_lags_behind(tmp_path):
    name, _ = run(tmp_path, model=model_with("hard"))
    model, saved = load_model(tmp_path / "checkpoints" / name / "2.pt")
    assert saved["config"]["mask_strategy"] == "hard" and model.hiding.name == "hard"
    weight, averaged = model.decoder.pred.weight, model.hiding.teacher["model"].decoder.pred.weight
    assert not torch.equal(weight, averaged) and not averaged.requires_grad


def test_an_unknown_one_is_refused():
    with pytest.raises(InputError, match="'best' is unknown; there are random, hard, uncertain, motion, still"):
        model_with("best")
