"""A handful of videos, cut in time into an early and a late part."""

import numpy as np
import pytest

from common.errors import InputError
from dataset_loader.decoding import Video
from dataset_loader.preparing.cutting import cut_in_time
from dataset_loader.preparing.encoding import write_video


def grey(value, height=60, width=96):
    return np.full((height, width, 3), value, np.uint8)


def values(path):
    with Video(path) as video:
        return [int(image.mean()) for image, _ in video.each_frame()], video.index.times


def test_the_parts_share_no_frame_and_keep_their_times(tmp_path):
    times = [0.1 * n + 0.02 * (n % 2) for n in range(20)]
    write_video(tmp_path / "a.mp4", (grey(10 * n + 20) for n in range(20)), times)
    early, late = cut_in_time([tmp_path / "a.mp4"], tmp_path / "out", late=0.3, short_side=30)
    assert [part[0].relative_to(tmp_path).as_posix() for part in (early, late)] == ["out/early/a.mp4", "out/late/a.mp4"]
    (first, at), (last, later) = values(early[0]), values(late[0])
    cut = sum(time < 0.7 * times[-1] for time in times)
    assert len(first) == cut and len(last) == 20 - cut
    np.testing.assert_allclose([*first, *last], [10 * n + 20 for n in range(20)], atol=3)
    np.testing.assert_allclose(at, times[:cut], atol=1e-3)
    np.testing.assert_allclose(later, np.array(times[cut:]) - times[cut], atol=1e-3)
    with Video(late[0]) as video:
        assert next(video.each_frame())[0].shape == (30, 48, 3)


def test_only_the_beginning_of_a_long_video_is_used_and_a_second_call_replaces(tmp_path):
    write_video(tmp_path / "a.mp4", (grey(8 * n) for n in range(30)), 10.0)
    for _ in range(2):
        parts = cut_in_time([tmp_path / "a.mp4"], tmp_path / "out", seconds=1.0, late=0.5)
    assert [len(values(part[0])[0]) for part in parts] == [5, 6]


def test_what_cannot_be_cut_is_said(tmp_path):
    write_video(tmp_path / "a.mp4", (grey(50 * n) for n in range(3)), 10.0)
    with pytest.raises(InputError, match="a.mp4 is too short to be cut: its late part would have 1 frames"):
        cut_in_time([tmp_path / "a.mp4"], tmp_path / "out")


def test_videos_of_one_name_are_numbered(tmp_path):
    for n, folder in enumerate("xyz"):
        write_video(tmp_path / folder / "a.mp4", (grey(60 * n + 30) for _ in range(4)), 4.0)
    early, late = cut_in_time([tmp_path / folder / "a.mp4" for folder in "xyz"], tmp_path / "out", late=0.5)
    assert [path.name for path in early] == [path.name for path in late] == ["a.mp4", "a-2.mp4", "a-3.mp4"]
    np.testing.assert_allclose([values(path)[0][0] for path in early], [30, 90, 150], atol=3)
