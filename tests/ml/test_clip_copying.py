"""A model of clips beside the copy of the nearest visible tubelet in time: nested loops, and known errors."""

import pytest
import torch

from common.errors import InputError
from mae.masking import MASKINGS, nearest_in_time
from ml.reconstruction import compare_with_copying, masking, reconstruct
from tests.ml.small import tiny_clips as tiny

SIZE, FRAMES, STEPS, PLACES = (24, 32), 6, 3, 12  # 3×4 places of 8 pixels, tubelets of 2 frames


def batches(count=2, still=False):
    """Batches of two clips of noise, or of still clips; with seeds for their masks."""
    generator = torch.Generator().manual_seed(0)
    for k in range(count):
        shape = (2, 1 if still else FRAMES, 3, *SIZE)
        video = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        yield {"video": video.expand(-1, FRAMES, -1, -1, -1), "seed": torch.arange(2) + 10 * k}


def nearest(n, visible):
    """The visible tubelet at the same place, nearest in time, of two the earlier; None if there is none."""
    candidates = [(abs(k // PLACES - n // PLACES), k) for k in visible if k % PLACES == n % PLACES]
    return min(candidates)[1] if candidates else None


@pytest.mark.parametrize("kind", MASKINGS)
@pytest.mark.parametrize("ratio", [0.5, 0.9])
def test_the_nearest_visible_tubelet_by_nested_loops(kind, ratio):
    model = tiny(mask_kind=kind, mask_ratio=ratio)
    for batch in batches():
        masks = model(batch["video"], seeds=batch["seed"])[2]
        for mask, found in zip(masks, nearest_in_time(masks, STEPS).tolist(), strict=True):
            visible = [n for n in range(36) if mask[n] == 0]
            expected = [nearest(n, visible) for n in range(36)]
            assert [n for n, e in zip(found, expected, strict=True) if e is not None] == [
                e for e in expected if e is not None
            ]
            if kind in ("frame", "prospective", "retrospective"):  # every place is seen at some step
                assert None not in expected
            assert all(expected[n] == n for n in visible)


@pytest.mark.parametrize("predicted", [3, 6])
def test_the_errors_by_nested_loops(predicted):
    model = tiny(pred_t_dim=predicted)
    rows = {part: [] for part in ("all", "seen", "unseen")}
    for batch in batches():
        _, prediction, masks = model(batch["video"], seeds=batch["seed"])
        for target, guess, mask in zip(model.target(model.pixels(batch["video"])), prediction, masks, strict=True):
            visible = [n for n in range(36) if mask[n] == 0]
            for n in range(36):
                if mask[n]:
                    other = nearest(n, visible)
                    copy = torch.zeros_like(target[n]) if other is None else target[other]
                    row = target[n].double(), guess[n].double(), copy.double()
                    rows["all"].append(row)
                    rows["unseen" if other is None else "seen"].append(row)
    table = compare_with_copying(model, batches())
    assert len(rows["seen"]) > 5 and len(rows["unseen"]) > 5
    for part, content in rows.items():
        target, guess, copy = (torch.stack(x).detach() for x in zip(*content, strict=True))
        factor = ((copy * target).sum() / copy.square().sum()).item() if copy.any() else 0.0
        expected = {
            "model": (guess - target).square().mean().item(),
            "copy": (copy - target).square().mean().item(),
            "mean": target.square().mean().item(),
            "copy × factor": (factor * copy - target).square().mean().item(),
            "factor": factor,
            "patches": len(content),
        }
        assert table[part] == pytest.approx(expected, rel=1e-5)
    assert table["all"]["mean"] == pytest.approx(1, abs=0.02)
    unseen = table["unseen"]
    assert unseen["copy"] == unseen["mean"] == pytest.approx(unseen["copy × factor"], rel=1e-6)
    total = sum(table[part]["patches"] for part in ("seen", "unseen"))
    assert table["all"]["patches"] == total == 4 * 27


def test_the_copy_of_a_still_clip_is_perfect_and_that_of_noise_is_not():
    """Where nothing moves, what was seen at another step is the answer; noise copied costs the mean's error twice."""
    model = tiny(mask_kind="prospective").train()
    assert compare_with_copying(model, batches(still=True))["all"]["copy"] == pytest.approx(0, abs=1e-10)
    noise = compare_with_copying(model, batches())["all"]
    assert noise["copy"] == pytest.approx(2, abs=0.1) and noise["copy × factor"] == pytest.approx(1, abs=0.02)
    assert model.training and compare_with_copying(model, batches())["unseen"] == {}
    assert compare_with_copying(model, batches()) == compare_with_copying(model, batches())


@pytest.mark.parametrize("normalised", [True, False])
def test_the_models_own_error_is_its_loss(normalised):
    model = tiny(norm_pix_loss=normalised)
    with torch.no_grad():
        losses = [model(batch["video"], seeds=batch["seed"])[0].item() for batch in batches()]
    assert compare_with_copying(model, batches())["all"]["model"] == pytest.approx(sum(losses) / 2, rel=1e-5)


def test_another_ratio_and_kind_for_a_while():
    model = tiny()
    sample = {"video": next(batches())["video"][0], "seed": 3}
    row = reconstruct(sample, model, mask_ratio=0.5, mask_kind="prospective")
    assert (row.mask_kind, row.hidden) == ("prospective", pytest.approx(2 / 3))
    assert (model.mask_ratio, model.mask_kind) == (0.75, "agnostic")
    with pytest.raises(InputError, match="'sideways' is unknown"):
        reconstruct(sample, model, mask_kind="sideways")
    with masking(model, 0.1, "tube"):
        assert (model.mask_ratio, model.mask_kind) == (0.1, "tube")
    assert (model.mask_ratio, model.mask_kind) == (0.75, "agnostic")
    with masking(model):
        assert model.mask_ratio == 0.75
