"""A schedule is read, checked, and is a function of the epoch or the step alone."""

import pytest

from common.errors import InputError
from mae.schedule import Schedule


def test_phases_follow_one_another():
    schedule = Schedule.parse("0 shifted_patches; 2 mixed:video=1,shifted=2 ;5 video;")
    assert [schedule.pairing(epoch) for epoch in range(8)] == [
        *["shifted_patches"] * 3,  # epochs 0 (taken for the first), 1 and 2: two are finished before the next phase
        *["mixed:video=1,shifted=2"] * 3,
        *["video"] * 2,
    ]
    assert schedule.mask_ratio(3.5) is None


def test_the_mask_ratio_goes_in_straight_lines():
    schedule = Schedule.parse("0 video; 2 video 0.5; 4 shifted; 6 video 0.9; 8 video 0.7")
    wanted = {0: 0.5, 2: 0.5, 3: 0.6, 5: 0.8, 6: 0.9, 6.5: 0.85, 8: 0.7, 100: 0.7}
    for progress, ratio in wanted.items():
        assert schedule.mask_ratio(progress) == pytest.approx(ratio)


@pytest.mark.parametrize(
    "text", ["", ";", "video", "0", "1 video", "0 video; 0 shifted", "0 video; 5 shifted; 3 video", "0 video x",
             "0 video 1.0", "0 video -0.1", "0 video nan", "0 video 0.5 0.6", "0.5 video", "-1 video; 0 video"],
)  # fmt: skip
def test_what_is_no_schedule_is_named(text):
    with pytest.raises(InputError, match="schedule"):
        Schedule.parse(text)
