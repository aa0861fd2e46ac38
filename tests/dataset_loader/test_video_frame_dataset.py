"""Ledgers in all their spellings, and the even segments that MAE3D's scripts expect of them."""

from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from common.errors import InputError
from dataset_loader import get_kinetics_dataset, make_loader
from dataset_loader.dataset import PairDataset
from dataset_loader.ledger import Ledger
from dataset_loader.loader import EpochSampler
from dataset_loader.video_frame_dataset import Segments, VideoFrameDataset

LENGTHS = {"video_1": 31, "video_2": 12, "class b/video_3": 20}


def picture(video: int, number: int) -> Image.Image:
    """A picture that says which it is: red 60 · video, green 5 · number."""
    return Image.new("RGB", (24, 16), (60 * video, 5 * number, 128))


def identify(image: Image.Image) -> tuple[int, int]:
    red, green, _ = np.asarray(image).reshape(-1, 3).mean(0)
    return round(red / 60), round(green / 5)


def make(tmp_path, template="img_{:05d}.jpg", start=1):
    for video, (name, length) in enumerate(LENGTHS.items(), 1):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        for number in range(start, start + length):
            picture(video, number).save(tmp_path / name / template.format(number), quality=100)
    return tmp_path


@pytest.fixture
def root(tmp_path):
    return make(tmp_path)


def ledger(root, text, **settings):
    (root / "ledger.csv").write_text(text)
    return Ledger(root, root / "ledger.csv", **settings)


SPELLINGS = {
    "blanks": "video_1 1 31 4\nvideo_2 1 12 5\n",
    "commas": "video_1,1,31,4\nvideo_2,1,12,5",
    "commas and blanks": "video_1, 1, 31, 4\r\n\r\nvideo_2, 1, 12, 5\r\n",
    "tabs and a byte order mark": "\ufeffvideo_1\t1\t31\t4\nvideo_2\t1\t12\t5\n\n",
    "a header": "video,start_frame,end_frame,class\nvideo_1,1,31,4\nvideo_2,1,12,5\n",
    "a header with blanks": "video start end class\nvideo_1 1 31 4\nvideo_2 1 12 5\n",
    "quotes": '"video_1",1,31,4\n"video_2",1,12,5\n',
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("template", ["img_{:05d}.jpg", "{:06d}.jpg", "img_{:06d}.png"])
def test_all_spellings(tmp_path, spelling, template):
    found = ledger(make(tmp_path, template), SPELLINGS[spelling])
    assert [name.split("/")[-1] for name in found.names] == ["video_1", "video_2"]
    assert found.first.tolist() == [1, 1]
    assert found.last.tolist() == [31, 12]
    assert found.labels == [4, 5]
    with found.open(1) as clip:
        assert clip.template == template
        np.testing.assert_allclose(clip.times, np.arange(12) / 30)
        frames, _ = clip.frames([0, 11])
    assert [identify(Image.fromarray(frame)) for frame in frames] == [(2, 1), (2, 12)]


def test_names_with_blanks_and_several_classes(root):
    found = ledger(root, "class b/video_3,3,17,0,2\n")
    assert found.labels == [[0, 2]]
    with found.open(0) as clip:
        assert len(clip.times) == 15
        frames, _ = clip.frames([0, 14])
    assert [identify(Image.fromarray(frame)) for frame in frames] == [(3, 3), (3, 17)]


def test_templates_may_differ_from_folder_to_folder(root):
    for path in (root / "video_2").iterdir():
        path.rename(path.with_name(path.name.replace("img_00", "")))
    found = ledger(root, SPELLINGS["blanks"])
    assert [found.open(n).template for n in (0, 1)] == ["img_{:05d}.jpg", "{:03d}.jpg"]
    for text in ("flow_x_00001.jpg", "flow_x_00031.jpg"):
        picture(1, 1).save(root / "video_1" / text)
    with pytest.raises(InputError, match="several kinds"):
        ledger(root, SPELLINGS["blanks"])
    assert ledger(root, "video_1 1 31 4", template="img_{:05d}.jpg").open(0).template == "img_{:05d}.jpg"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("video_1 1 32 0", r"frame 32 of .*video_1 is not there, which holds img_00001.jpg to img_00031.jpg"),
        ("video_1 0 31 0", "frame 0 of"),
        ("video_9 1 31 0", "video_9: cannot be listed"),
        ("video_1 9 8 0", "the first frame of video_1 is 9, the last 8"),
        ("video_1 1", "is not 'name first last class'"),
        ("video_1", "is not 'name first last class'"),
        ("video_1 one 31 0", "is not 'name first last class'"),
        ("class b/video_3 1 20 0", "is not 'name first last class'"),
        ("video_1 1 31 cat", "is not 'name first last class'"),
    ],
)
def test_a_line_that_does_not_fit_is_named_with_its_number(root, line, said):
    with pytest.raises(InputError, match=f"ledger.csv, line 4: .*{said}"):
        ledger(root, f"name first last class\nvideo_1 1 31 0\n\n{line}\nvideo_2 1 12 0\n")


def test_a_ledger_without_a_line(root):
    for text in ("", "\n\n", "name,first,last,class\n"):
        with pytest.raises(InputError, match="names no video"):
            ledger(root, text)
    with pytest.raises(InputError, match="cannot be read"):
        Ledger(root, root / "absent.csv")


def test_pairs_from_a_ledger(root):
    (root / "ledger.csv").write_text("video_1,11,31,0\nvideo_2,1,12,1\n")
    dataset = get_kinetics_dataset(root, image_size=16, repeated_sampling=20, fps=10)
    sample = dataset[0]
    seen = {identify(Image.fromarray(frame.permute(1, 2, 0).numpy())) for frame in sample["video"].flatten(0, 1)}
    assert {video for video, _ in seen} == {1}
    assert min(number for _, number in seen) >= 11
    gaps = sample["time"][:, 1] - sample["time"][:, 0]
    assert gaps.min() >= 0.1 - 1e-9
    assert gaps.max() <= 1.6 + 0.05


# VideoFrameDataset


def dataset(root, *arguments, **settings):
    (root / "ledger.csv").write_text("video_1 1 31 4\nvideo_2 1 12 5\nvideo_1 6 10 7\n")
    return VideoFrameDataset(root, root / "ledger.csv", *arguments, **settings)


def test_consecutive_frames_in_even_segments(root):
    """The interface of the public scripts: positions of arguments, PIL images, the class."""
    data = dataset(root, 3, 4, "img_{:05d}.jpg", None, False)
    assert len(data) == 3
    starts = [Counter() for _ in range(3)]
    for _ in range(300):
        images, label = data[0]
        assert label == 4
        found = np.array([identify(image) for image in images])
        assert (found[:, 0] == 1).all()
        numbers = found[:, 1].reshape(3, 4)
        assert (np.diff(numbers) == 1).all()
        for counter, start in zip(starts, numbers[:, 0], strict=True):
            counter[int(start)] += 1
    # 31 - 4 + 1 = 28 starts, 1…28, in three parts of 9 or 10: every one of them is drawn, none of another part.
    assert [set(counter) for counter in starts] == [set(range(1, 10)), set(range(10, 19)), set(range(19, 29))]


def test_starts_are_uniform(root):
    data = dataset(root, 2, 1)
    generator = np.random.default_rng(0)
    starts = np.stack([data.segments.starts(12, generator) for _ in range(6000)])
    for part, column in enumerate(starts.T):
        counts = np.bincount(column - 6 * part, minlength=6)
        assert len(counts) == 6
        assert np.abs(counts - 1000).max() < 150


def test_test_mode_takes_the_centres(root):
    data = dataset(root, 3, 2, test_mode=True)
    for _ in range(2):
        images, _ = data[1]  # 11 starts in three parts of 3 2/3: centres 1 5/6, 5 1/2, 9 1/6
        assert [identify(image)[1] for image in images] == [2, 3, 6, 7, 10, 11]
    assert [identify(image)[1] for image in dataset(root, 1, 1, test_mode=True)[2][0]] == [8]  # of 6…10


def test_clips_with_fewer_starts_than_segments(root):
    for settings in ({}, {"test_mode": True}):
        images, _ = dataset(root, 4, 4, **settings)[2]
        numbers = np.array([identify(image)[1] for image in images]).reshape(4, 4)
        assert set(numbers[:, 0]) == {6, 7}
        assert (np.diff(numbers) == 1).all()
    with pytest.raises(InputError, match="video_1 has 5 frames, fewer than the 6 of a segment"):
        dataset(root, 1, 6)
    with pytest.raises(InputError, match="num_segments 0"):
        dataset(root, 0, 1)


def test_frames_that_are_missing_in_the_middle(root):
    for number in range(7, 10):
        (root / "video_1" / f"img_{number:05}.jpg").unlink()
    with pytest.raises(InputError, match=r"line 3: .*video_1 lacks img_00007\.jpg \(3 of its frames 6 to 10\)"):
        ledger(root, "video_2 1 12 5\n\nvideo_1 6 10 7\n", complete=True)
    with pytest.raises(InputError, match="line 1: .*video_1 lacks"):
        dataset(root, 2, 2)
    # A clip that is too short for a sampler is replaced, reported, and ends no run.
    short = ledger(root, "video_1 6 10 7\nvideo_2 1 12 5\n")
    (batch,) = make_loader(PairDataset(short, Segments(1, 4), image_size=16), 2)
    assert batch["path"] == [str(root / "video_2")] * 2
    assert batch["bad"] == [(str(root / "video_1"), "a video has 2 frames, fewer than the 4 of a segment")]


@pytest.mark.parametrize("template", ["img_{:05q}.jpg", "img_%05d.jpg", "{x}.jpg", "img_{.jpg", "{:05d}{:05d}.jpg"])
def test_templates_that_cannot_be(root, template):
    with pytest.raises(InputError, match="imagefile_template is .*it must have a place for a frame's number"):
        dataset(root, imagefile_template=template)


def test_randomness(root):
    def numbers(data, key):
        return tuple(identify(image)[1] for image in data[key][0])

    data, again, other = dataset(root, 3), dataset(root, 3), dataset(root, 3, seed=1)
    keys = [(epoch, 0) for epoch in range(6)]
    assert [numbers(data, key) for key in keys] == [numbers(again, key) for key in reversed(keys)][::-1]
    assert len({numbers(data, key) for key in keys}) > 1
    assert [numbers(data, key) for key in keys] != [numbers(other, key) for key in keys]
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append([numbers(data, 0) for _ in range(4)])
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0])) > 1


def test_in_a_data_loader(root):
    def transform(images):
        return torch.stack([torch.from_numpy(np.array(image)) for image in images]).permute(0, 3, 1, 2)

    data = dataset(root, 2, 2, transform=transform)
    loader = DataLoader(data, batch_size=3, sampler=EpochSampler(3, seed=5))
    ((video, labels),) = loader
    assert video.shape == (3, 4, 3, 16, 24)
    assert video.dtype == torch.uint8
    assert sorted(labels.tolist()) == [4, 5, 7]
