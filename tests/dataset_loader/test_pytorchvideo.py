"""Our sampling in pytorchvideo's pipeline, where it is installed, and torchvision left as it is."""

import sys
from contextlib import suppress

import numpy as np
import pytest
import torch

from common.errors import InputError
from dataset_loader import RandomTemporalSubsample, decode_all
from dataset_loader.preparing.encoding import write_video
from dataset_loader.pytorchvideo import import_pytorchvideo, labeled_video_dataset

# Both stem from pytorchvideo's own code.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


def installed() -> None:
    pytest.importorskip("pytorchvideo", reason="pytorchvideo is an extra: pip install --no-deps pytorchvideo fvcore …")


def test_without_it_a_sentence_says_what_to_do():
    with pytest.raises(InputError, match=r"pip install 'siammae\[pytorchvideo\]'"):
        import_pytorchvideo("pytorchvideo_is_not_there")


def test_the_alias_is_not_left_behind(monkeypatch):
    """By our import of theirs: other code must see torchvision as it is."""
    for name in [name for name in sys.modules if name.split(".")[0] == "pytorchvideo"]:
        monkeypatch.delitem(sys.modules, name)
    with suppress(InputError):
        import_pytorchvideo("pytorchvideo.transforms")
    assert "torchvision.transforms.functional_tensor" not in sys.modules


def test_their_transforms_can_be_imported():
    installed()
    transforms = import_pytorchvideo("pytorchvideo.transforms")
    sampled = torch.nn.Sequential(transforms.ShortSideScale(8), _Module(RandomTemporalSubsample(1, 5)))
    assert sampled(torch.zeros(3, 20, 16, 32)).shape == (3, 2, 8, 16)


class _Module(torch.nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, video):
        return self.function(video)


@pytest.mark.parametrize("fps", [15, 30])
def test_a_dataset_of_theirs_gives_our_pairs(tmp_path, moving_frames, fps):
    installed()
    write_video(tmp_path / "clip.mp4", moving_frames, fps, gop=10)
    frames, times = decode_all(tmp_path / "clip.mp4")
    dataset = labeled_video_dataset(
        tmp_path, temporal=RandomTemporalSubsample(6, 12), label=lambda path: 7, transform=lambda video: video + 0
    )
    gaps = []
    for _ in range(12):
        sample = next(iter(dataset))
        dataset._video_sampler_iter = None
        assert sample["label"] == 7
        assert sample["video"].shape == (3, 2, 48, 64)
        pair = sample["video"].permute(1, 2, 3, 0).numpy()
        numbers = [int(np.abs(frames - frame).mean((1, 2, 3)).argmin()) for frame in pair]
        gaps.append(times[numbers[1]] - times[numbers[0]])
    assert min(gaps) >= 0.2 - 0.5 / fps - 0.01
    assert max(gaps) <= 0.4 + 0.5 / fps + 0.01
    assert len({round(gap, 3) for gap in gaps}) > 1
