"""The pictures that the notebook draws: the affinities of a patch, and a strip of what was followed."""

import numpy as np
import pytest
import torch

from common.errors import InputError
from evaluation.pictures import BAND, COLUMNS, STRIP_WIDTH, affinity_figure, palette, tracking_strip


def test_the_chosen_patch_and_its_best_match_are_in_boxes():
    frame = np.zeros((60, 80, 3), np.uint8)
    affinity = torch.rand(6, 8, generator=torch.Generator().manual_seed(0))
    affinity[4, 7] = 2
    figure = affinity_figure(frame, frame, affinity, (1, 5))
    left, right, bar = figure.axes
    assert [(box.get_x(), box.get_y(), box.get_width()) for box in left.patches + right.patches] == [
        (5, 1, 1), (7, 4, 1)
    ]  # fmt: skip
    heat = right.images[-1]
    assert np.allclose(heat.get_array(), affinity) and heat.get_extent() == [0, 8, 6, 0]
    assert heat.norm.vmin == pytest.approx(affinity.double().quantile(0.5).item(), abs=1e-6)
    assert bar.get_ylabel() == "cosine"
    figure.canvas.draw()


def test_a_patch_outside_of_the_grid_is_refused():
    frame = np.zeros((60, 80, 3), np.uint8)
    with pytest.raises(InputError, match=r"the patch \(6, 0\) .* outside of the 6×8 patches"):
        affinity_figure(frame, frame, torch.rand(6, 8), (6, 0))


def test_a_strip_shows_frames_from_the_first_to_the_last_with_their_masks():
    mask = np.zeros((30, 40), np.uint8)
    mask[10:20, 10:30] = 1
    tracked = [(np.full((30, 40, 3), 10 * t, np.uint8), mask) for t in range(20)]
    strip = tracking_strip(tracked)
    assert strip.shape == (BAND + STRIP_WIDTH * 30 // 40, COLUMNS * STRIP_WIDTH, 3)
    corners = strip[BAND + 2, 2::STRIP_WIDTH, 0]
    assert corners[0] == 0 and corners[-1] == 190 and (np.diff(corners.astype(int)) > 0).all()
    inside = strip[BAND + STRIP_WIDTH * 30 // 40 // 2, STRIP_WIDTH // 2]
    assert np.abs(inside.astype(int) - palette()[1] // 2).max() <= 1  # half black, half the object's colour
    two = tracking_strip(tracked[:2], [0, 7])
    assert two.shape[1] == 2 * STRIP_WIDTH
    assert (two[:BAND] != tracking_strip(tracked[:2], [0, 3])[:BAND]).any()  # they are called as they are told
