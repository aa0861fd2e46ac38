"""The motion measures, on models whose answers are known: one that matches perfectly, one that copies, and by loops."""

import numpy as np
import pytest
import torch
from torch import nn

from common.errors import InputError
from dataset_loader import get_kinetics_dataset, make_loader
from dataset_loader.synthetic import synthetic_video
from mae.masking import mask_noise, random_masking
from mae.patches import normalize_patches, patchify
from ml import motion
from ml.decoders import CrossAttention
from ml.motion import MotionPairs, attention_hits, cropped_pairs, motion_report, motion_score, motion_table
from ml.SiamMAE import build_model

P, GRID = 4, 6  # pixels of a patch, patches along a side
N = GRID * GRID
SIDE = P * GRID


class HandMade(nn.Module):
    """Predicts f1's patch that lies `step` patches away, and its cross-attention points there; (0, 0) copies.

    The queries and keys are one-hot numbers of patches, so that the query's weights say where each looks.
    """

    norm_pix_loss, patch_size, mask_ratio = True, P, 0.75

    def __init__(self, step: tuple[int, int]) -> None:
        super().__init__()
        rows, columns = (grid.flatten() for grid in torch.meshgrid(*2 * [torch.arange(GRID)], indexing="ij"))
        self.goal = ((rows + step[0]) % GRID) * GRID + (columns + step[1]) % GRID  # [N]
        self.elsewhere = CrossAttention(N + 1, 1)  # a first layer that looks at the class token
        self.cross = CrossAttention(N + 1, 1)
        for layer, looks in ((self.elsewhere, torch.zeros(N, dtype=torch.long)), (self.cross, 1 + self.goal)):
            nn.init.zeros_(layer.q.weight)
            nn.init.zeros_(layer.kv.weight)
            layer.q.weight.data[looks, 1 + torch.arange(N)] = 1000.0
            layer.kv.weight.data[: N + 1] = torch.eye(N + 1)

    def normalize(self, video):
        return video.float() / 255

    def patchify(self, images):
        return patchify(images, P)

    def forward(self, video, *, seeds):
        return torch.zeros(()), *self.predict(self.normalize(video), self.draw_noise(video, seeds))

    def draw_noise(self, video, seeds):
        return mask_noise(seeds, N)

    def predict(self, frames, noise):
        past = normalize_patches(self.patchify(frames[:, 0]))
        tokens = torch.eye(N + 1).expand(len(frames), -1, -1)
        self.cross(self.elsewhere(tokens, tokens) * 0 + tokens, tokens)
        mask = random_masking(noise, self.mask_ratio)[1]
        return past[:, self.goal], mask


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    generator = np.random.default_rng(0)
    return torch.from_numpy(generator.integers(0, 256, (10, 3, SIDE + 16, SIDE + 16), dtype=np.uint8))


def to_the_right(images: torch.Tensor, shift: int, monkeypatch) -> MotionPairs:
    monkeypatch.setattr(motion, "DIRECTIONS", ((0, 1),))
    return motion.shifted_pairs(images, shift, size=SIDE)


def test_a_perfect_match_and_a_copy(images, monkeypatch):
    test = to_the_right(images, P, monkeypatch)
    for step, error in (((0, 1), 0.0), ((0, 0), 2.0)):
        report = motion_report(HandMade(step), [test], mask_ratios=[0.5, 0.75])["shift 4"]
        for errors in report["errors"].values():
            assert errors["model"] == pytest.approx(error, abs=0.15 if error else 1e-9)  # unlike noise: 1 + 1
            assert errors["oracle"] == pytest.approx(0, abs=1e-6)
            assert errors["mean"] == pytest.approx(1 - 1 / (3 * P * P), abs=1e-3)
            assert errors["copy × factor"] <= errors["mean"] < errors["copy"]
        assert errors["copy"] == pytest.approx(errors["model"]) or step != (0, 0)
        for layers in report["attention"].values():
            values = layers["layer 2"]["mean"]
            assert values["exact"] == float(step == (0, 1))
            assert values["near"] == 1.0  # the same place is one patch away: why 4 pixels say little here
            assert values["distance"] == pytest.approx(float(step == (0, 0)))
            assert layers["layer 1"]["mean"]["exact"] < 0.2  # looks at the class token: all patches alike


def test_two_patches_away(images, monkeypatch):
    test = to_the_right(images, 2 * P, monkeypatch)
    hits = {step: attention_hits(HandMade((0, step)), test)["layer 2"]["mean"] for step in (0, 1, 2)}
    assert [hits[step]["exact"] for step in (0, 1, 2)] == [0, 0, 1]
    assert [hits[step]["near"] for step in (0, 1, 2)] == [0, 1, 1]
    assert [hits[step]["distance"] for step in (0, 1, 2)] == pytest.approx([2, 1, 0])


def test_half_a_patch(images, monkeypatch):
    """Both neighbours are half a patch away, and either counts as exact."""
    test = to_the_right(images, P // 2, monkeypatch)
    for step, exact in ((0, 1), (1, 1), (2, 0)):
        assert attention_hits(HandMade((0, step)), test)["layer 2"]["mean"]["exact"] == exact


def test_chance_by_counting(images, monkeypatch):
    """Pointing anywhere: brute force over all patches whose content f1 shows, if all are textured alike."""
    test = to_the_right(images, P, monkeypatch)
    model = HandMade((0, 0))
    chance = attention_hits(model, test)["chance"]["mean"]
    spread = model.patchify(model.normalize(test.video[:, 1])).std(-1)
    exact, near, distance, count = 0, 0, 0.0, 0
    for b in range(len(images)):
        for n in range(N):
            row, column = n // GRID, n % GRID + 1
            if column == GRID or spread[b, n] <= spread.median():
                continue
            count += 1
            for k in range(N):
                away = abs(k // GRID - row), abs(k % GRID - column)
                exact += max(away) == 0
                near += max(away) <= 1
                distance += (away[0] ** 2 + away[1] ** 2) ** 0.5
    assert chance["exact"] == pytest.approx(exact / N / count)
    assert chance["near"] == pytest.approx(near / N / count, rel=1e-5)
    assert chance["distance"] == pytest.approx(distance / N / count, rel=1e-5)


def test_errors_by_loops(images):
    """Any model's error over hidden patches that f1 shows, one patch after the other; any direction."""
    test = motion.shifted_pairs(images, 6, seed=3, size=SIDE)
    model = HandMade((1, 0))
    errors = motion_report(model, [test], mask_ratios=[0.5])["shift 6"]["errors"]["0.5"]
    frames = (test.video.float() / 255).numpy()
    mask = random_masking(mask_noise(torch.arange(10), N), 0.5)[1]
    sums, copies, pairs, count = 0.0, 0.0, np.zeros(3), 0
    for b in range(10):
        down, right = (test.flow[b, 0, 0]).int().tolist()
        for n in range(N):
            top, left = n // GRID * P, n % GRID * P
            inside = 0 <= top + down <= SIDE - P and 0 <= left + right <= SIDE - P
            if not (inside and mask[b, n]):
                continue

            def normal(patch):
                return (patch - patch.mean()) / np.sqrt(patch.var(ddof=1) + 1e-6)

            target = normal(frames[b, 1, :, top : top + P, left : left + P])
            copy = normal(frames[b, 0, :, top : top + P, left : left + P])
            below = (top + P) % SIDE
            sums += np.square(normal(frames[b, 0, :, below : below + P, left : left + P]) - target).mean()
            copies += np.square(copy - target).mean()
            pairs += [(target * target).mean(), (copy * target).mean(), (copy * copy).mean()]
            count += 1
            oracle = frames[b, 0, :, top + down : top + down + P, left + right : left + right + P]
            assert np.allclose(oracle, frames[b, 1, :, top : top + P, left : left + P])
    assert errors["patches"] == count > 50
    assert errors["model"] == pytest.approx(sums / count, rel=1e-4)
    assert errors["copy"] == pytest.approx(copies / count, rel=1e-4)
    factor = pairs[1] / pairs[2]
    best = (pairs[0] - 2 * factor * pairs[1] + factor**2 * pairs[2]) / count
    assert errors["copy × factor"] == pytest.approx(best, rel=1e-4)


def test_maps_are_those_of_the_decoder(images):
    """Single queries of single heads, by hand: the softmax over all of f1's keys, of which the class token is left out.

    Two futures of one past lie one behind the other.
    """
    model = build_model(dict(MICRO, decoder_size=(32, 2, 4))).eval()
    layers = [module for module in model.modules() if isinstance(module, CrossAttention)]
    inputs: list[tuple[torch.Tensor, ...]] = []
    for layer in layers:
        layer.register_forward_hook(lambda m, arguments, out: inputs.append(arguments))
    video = images[:3, :, :SIDE, :SIDE][:, None].expand(-1, 3, -1, -1, -1)
    with torch.no_grad(), motion.cross_attention_maps(model) as maps:
        model(video, seeds=torch.arange(3))
    assert len(maps) == len(layers) == 2
    for weights, layer, (x, memory) in zip(maps, layers, inputs, strict=True):
        assert weights.shape == (3, 4, 2 * N, N)
        for b, head, future, n in ((0, 0, 0, 0), (2, 3, 1, N - 1), (1, 2, 0, 7)):
            q = layer.q(x)[2 * b + future, 1 + n, 8 * head : 8 * head + 8]
            k = layer.kv(memory)[b, :, 8 * head : 8 * head + 8]
            expected = (k @ q / 8**0.5).softmax(0)[1:]
            assert torch.allclose(weights[b, head, future * N + n], expected, atol=1e-6)
    with torch.no_grad():
        model(video, seeds=torch.arange(3))
    assert len(maps) == 2  # nothing is kept outside


MICRO = dict(
    model="SiamMAE", mae=dict(img_size=SIDE, patch_size=P, embed_dim=32, depth=1, num_heads=2), mask_ratio=0.75
)


def test_a_real_model_with_its_twin(images):
    torch.manual_seed(5)
    model = build_model(dict(MICRO, decoder_size=(32, 2, 4)))
    twin = motion.untrained_twin(model)
    tests = [motion.shifted_pairs(images, shift, size=SIDE) for shift in (4, 8)]
    report = motion_report(model, tests, untrained=twin)
    assert model.training
    assert model.mask_ratio == 0.75
    assert report == motion_report(model, tests, untrained=motion.untrained_twin(model))
    errors = report["shift 8"]["errors"]["0.95"]
    assert errors["untrained"] != errors["model"]
    hits = report["shift 4"]["attention"]["f2 visible"]
    assert list(hits) == ["layer 1", "layer 2", "all layers", "chance"]
    assert list(hits["layer 1"]) == ["head 1", "head 2", "head 3", "head 4", "mean"]
    assert all(0 <= hits["layer 1"][head]["exact"] < 0.5 for head in hits["layer 1"])
    table = motion_table(report)
    assert f"| shift 8 | 95% | **{errors['model']:.3f}** |" in table
    scores = motion_score(tests)(model)
    assert scores["shift 8: error"] == report["shift 8"]["errors"]["0.75"]["model"]
    assert scores["shift 8: hits"] == report["shift 8"]["attention"]["f2 visible"]["layer 2"]["mean"]["exact"]


def test_a_joint_decoder_points_nowhere(images):
    model = build_model(dict(MICRO, decoder_size=(32, 1, 4), decoder_kind="joint"))
    report = motion_report(model, [motion.shifted_pairs(images, 4, size=SIDE)])
    assert report["shift 4"]["attention"] == {"f2 visible": {}, "0.75 hidden": {}, "0.95 hidden": {}}
    assert "exact" in motion_table(report)


def test_plain_pixels_are_compared_normalised(images, monkeypatch):
    class Plain(HandMade):
        norm_pix_loss = False

        def forward(self, video, *, seeds):
            loss, prediction, mask = super().forward(video, seeds=seeds)
            return loss, 0.1 * prediction + 7, mask

    test = to_the_right(images, P, monkeypatch)
    errors = motion_report(Plain((0, 1)), [test], mask_ratios=[0.5])["shift 4"]["errors"]["0.5"]
    assert errors["model"] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("pairing", ["crops", "shifted"])
def test_boxes_of_crops_are_the_flow(clips, pairing):
    """f1 moved as the boxes say is f2, where both show it: of different scale, mirrored or not."""
    dataset = get_kinetics_dataset(clips, image_size=48, pairing=pairing, patch_size=8, visits=4)
    (batch,) = make_loader(dataset, 24)
    test = cropped_pairs(pairing, batch["video"], batch["box"])
    past, future = batch["video"].float().unbind(1)
    guess = motion.moved(past, test.flow)
    where = ((test.flow > 2) & (test.flow < 45)).all(-1)[:, None].expand_as(guess)
    error, still = ((other - future).abs()[where].mean() for other in (guess, past))
    assert batch["box"][..., 4].float().mean() not in (0, 1)
    assert error < 0.35 * still
    assert motion.known(test, slice(None), 8).mean() > 0.2


def test_true_motion_of_the_synthetic_world():
    """The flow that the tool takes from the world moves f1 onto f2, where f2's pixels were in sight."""
    world = synthetic_video(3, height=64, width=64, times=[0.25, 0.1])
    video = torch.from_numpy(world.frames[[1, 0]].copy())[None]
    flow = motion.places(64) + torch.from_numpy(world.motion[0].copy()).flip(-1)
    seen = torch.from_numpy(~world.occluded[0])
    test = MotionPairs("world", video, flow[None], seen[None])
    past, future = video.float().unbind(1)
    where = seen[None, None].expand_as(past)
    error = (motion.moved(past, flow[None]) - future).abs()[where].mean()
    assert error < 0.5 * (past - future).abs()[where].mean()
    assert 0.3 < motion.known(test, slice(None), 8).mean() < 1


def test_what_cannot_be_measured_is_said(images):
    with pytest.raises(InputError, match="hold no windows of 36 shifted by 4"):
        motion.shifted_pairs(images, 4, size=36)
    hidden = MotionPairs("nothing", images[:2, None].expand(-1, 2, -1, -1, -1)[..., :SIDE, :SIDE],
                         motion.places(SIDE).expand(2, -1, -1, -1) + 1000)  # fmt: skip
    with pytest.raises(InputError, match="nothing: no hidden patch"):
        motion_report(HandMade((0, 0)), [hidden])
