"""Masks: the count, the partition, the restoring permutation."""

import pytest
import torch

from mae.files import InputError
from mae.masking import random_masking, visible_count


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
