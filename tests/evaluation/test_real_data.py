"""The readers on real data, where it is here: everything is found, opened and scored."""

import numpy as np

from evaluation.benchmarks.camvid import CamVid
from evaluation.benchmarks.davis import Davis
from evaluation.benchmarks.joints import Joints
from evaluation.features import feature_source
from evaluation.follow import follow_joints, follow_mask
from evaluation.protocols import protocol
from evaluation.videos import read_mask


def test_davis(shared):
    davis = Davis(shared / "davis", 2016)
    videos = list(davis.videos())
    assert len(videos) == 8 and sum(map(len, videos)) == 416
    video = next(video for video in videos if len(video) == 40)
    truth = [(read_mask(shared / "davis/Annotations/480p" / video.name / f"{p.stem}.png") > 0) * np.uint8(1)
             for p in video.paths]  # fmt: skip
    (score,) = davis.score(video, truth)["objects"]
    assert (score["J-Mean"], score["F-Mean"], score["J-Decay"]) == (1, 1, 0)
    rules = protocol("dino")
    first_masks = [next(follow_mask(v.frames(), v.first, feature_source("pixels").encode, rules)) for v in videos[:3]]
    for video, mask in zip(videos, first_masks, strict=False):
        assert mask.shape == video.first.shape == (480, 854)
        assert ((mask & video.first).sum() / (mask | video.first).sum()) > 0.4  # little happens in one frame


def test_camvid(shared):
    camvid = CamVid(shared / "camvid")
    (video,) = camvid.videos()
    assert len(video) == 40 and video.first.shape == (360, 480) and video.first.max() == 11
    assert 0.3 < camvid.value(camvid.score(video, [video.first] * 40)) < 0.7  # nothing followed


def test_keypoints(shared):
    badja = Joints(shared / "joints" / "badja_dog_horsejump.json", shared / "davis" / "JPEGImages" / "480p")
    dog, horse = badja.videos()
    assert (dog.paths[0].stem, horse.paths[0].stem, dog.first.shape) == ("00003", "00000", (20, 2))
    truth = [dog.first] * len(dog)
    known = {index: label for index, label, _ in dog.truth(truth)}
    assert len(known) == 12
    perfect = [known.get(index, dog.first) for index in range(len(dog))]
    assert badja.row({"": badja.score(dog, perfect)})["PCK@0.1 strict"] == 1 > badja.value(badja.score(dog, truth))
    still = [next(dog.frames())] * 4
    *_, joints = follow_joints(still, dog.first, feature_source("pixels").encode, badja.protocol())
    seen = ~np.isnan(dog.first).any(axis=1)
    assert (joints[~seen] == -1).all()
    cell = np.hypot(854 / 20, 480 / 20)
    assert np.linalg.norm(joints[seen] - dog.first[seen], axis=1).max() < cell
