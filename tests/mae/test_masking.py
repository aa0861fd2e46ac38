"""Masks: the count, the partition, the restoring permutation."""

import pytest
import torch

from common.errors import InputError
from mae.masking import MASKINGS, check_some_hidden, clip_masking, mask_noise, random_masking, visible_count


@pytest.mark.parametrize(("mask_ratio", "visible"), [(0, 196), (0.5, 98), (0.75, 49), (0.9, 19), (0.95, 9)])
def test_visible_patches_of_196(mask_ratio, visible):
    assert visible_count(196, mask_ratio) == visible


def test_a_count_that_is_whole_is_not_rounded_down():
    assert visible_count(100, 0.9) == 10 and visible_count(30, 0.9) == 3 and visible_count(20, 0.95) == 1
    assert visible_count(4, 0.95) == 1  # at least one patch stays visible


@pytest.mark.parametrize("mask_ratio", [-0.1, 1.0, 75, float("nan")])
def test_a_ratio_out_of_range_is_refused(mask_ratio):
    with pytest.raises(InputError, match=r"0\.95 for 95 %"):
        visible_count(196, mask_ratio)


@pytest.mark.parametrize("mask_ratio", [0.0, 0.5, 0.9])
def test_kept_and_hidden_are_all_and_restoring_puts_them_back(mask_ratio):
    B, N = 3, 30
    noise = torch.rand(B, N, generator=torch.Generator().manual_seed(0))
    ids_keep, mask, ids_restore = random_masking(noise, mask_ratio)
    K = visible_count(N, mask_ratio)
    assert ids_keep.shape == (B, K) and mask.sum(1).tolist() == [N - K] * B
    for b in range(B):
        kept = set(ids_keep[b].tolist())
        assert kept | set(mask[b].nonzero().flatten().tolist()) == set(range(N)) and not mask[b, list(kept)].any()
        # the patches with the least noise are kept, least first
        assert ids_keep[b].tolist() == sorted(range(N), key=lambda n: noise[b, n])[:K]
        shuffled = torch.argsort(noise[b])
        assert torch.equal(shuffled[ids_restore[b]], torch.arange(N))


# Of clips: 6 steps in time with 5 places each.
T, S = 6, 5
KINDS = tuple(MASKINGS)


def clip_masks(kind, mask_ratio, B=4, steps=T, places=S, seed=0):
    noise = mask_noise(torch.arange(B) + 100 * seed, steps * places)
    return clip_masking(noise, mask_ratio, steps, kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mask_ratio", [0.0, 0.1, 0.5, 0.75, 0.9, 0.95])
def test_every_kind_keeps_the_contract_and_counts_exactly(kind, mask_ratio):
    ids_keep, mask, ids_restore = clip_masks(kind, mask_ratio)
    counted = {"agnostic": T * S, "tube": S}.get(kind, T)  # what the ratio counts: tubelets, places or steps
    K = visible_count(counted, mask_ratio) * T * S // counted
    assert ids_keep.shape == (4, K) and mask.sum(1).tolist() == [T * S - K] * 4
    for b in range(4):
        kept, hidden = set(ids_keep[b].tolist()), set(mask[b].nonzero().flatten().tolist())
        assert kept | hidden == set(range(T * S)) and not kept & hidden
        shuffled = torch.cat([ids_keep[b], torch.tensor([n for n in ids_restore[b].argsort().tolist() if n in hidden])])
        assert torch.equal(shuffled[ids_restore[b]], torch.arange(T * S))


@pytest.mark.parametrize("mask_ratio", [0.1, 0.5, 0.75, 0.9])
def test_what_each_kind_hides(mask_ratio):
    masks = {kind: clip_masks(kind, mask_ratio, B=20)[1].unflatten(1, (T, S)).bool() for kind in KINDS}
    assert (masks["tube"] == masks["tube"][:, :1]).all()  # the same at every step
    for kind in ("frame", "prospective", "retrospective"):
        assert (masks[kind] == masks[kind][:, :, :1]).all()  # whole steps
    seen = visible_count(T, mask_ratio)
    for b in range(20):
        assert masks["prospective"][b, :, 0].tolist() == [False] * seen + [True] * (T - seen)  # the future
        assert masks["retrospective"][b, :, 0].tolist() == [True] * (T - seen) + [False] * seen  # the past
    for kind in ("agnostic", "tube", "frame"):
        assert len({tuple(mask.flatten().tolist()) for mask in masks[kind]}) > 1  # drawn for each sample


def test_16_frames_at_90_percent():
    """Eight steps of 14×14: 156 tubelets of 1568; 19 tubes; one step, the least there is, which hides 87.5 %."""
    visible = {kind: clip_masks(kind, 0.9, B=1, steps=8, places=196)[0].shape[1] for kind in KINDS}
    assert visible == dict(agnostic=156, tube=19 * 8, frame=196, prospective=196, retrospective=196)


@pytest.mark.parametrize("kind", KINDS)
def test_a_clips_mask_follows_from_its_seed_alone(kind):
    one, again = clip_masks(kind, 0.5), clip_masks(kind, 0.5)
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert torch.equal(clip_masks(kind, 0.5, B=2)[1], one[1][:2])
    if kind == "tube":  # and the same places in a longer clip
        assert torch.equal(clip_masks(kind, 0.5, steps=9)[1][:, :S], one[1][:, :S])
    if kind == "frame":  # and the same steps in a larger picture
        assert torch.equal(clip_masks(kind, 0.5, places=7)[1][:, ::7], one[1][:, ::S])


def test_agnostic_is_maes_own():
    noise = torch.rand(3, T * S)
    for ours, maes in zip(clip_masking(noise, 0.75, T), random_masking(noise, 0.75), strict=True):
        assert torch.equal(ours, maes)


@pytest.mark.parametrize(("kind", "unit"), [("tube", S), ("frame", T)])
def test_drawn_units_are_hidden_equally_often(kind, unit):
    masks = clip_masks(kind, 0.5, B=4000)[1].unflatten(1, (T, S))
    share = (masks[:, 0] if kind == "tube" else masks[:, :, 0]).mean(0)
    expected = 1 - visible_count(unit, 0.5) / unit
    assert (share - expected).abs().max() < 4.5 * (expected * (1 - expected) / 4000) ** 0.5


def test_a_mask_that_hides_nothing_is_refused():
    check_some_hidden(12, 0.1)
    with pytest.raises(InputError, match="at a mask ratio of 0.0 all 12 patches stay visible"):
        check_some_hidden(12, 0.0)
    with pytest.raises(InputError, match="take another kind of mask"):
        check_some_hidden(12, 0.5, visible=12)  # as where whole steps are hidden, and there is one


def test_bad_kinds_and_steps_are_named():
    with pytest.raises(InputError, match="'past' is unknown; there are agnostic, tube, frame, prospective, retrospect"):
        clip_masks("past", 0.5)
    with pytest.raises(InputError, match="30 tubelets do not divide into 4 steps"):
        clip_masking(torch.rand(1, 30), 0.5, 4)
