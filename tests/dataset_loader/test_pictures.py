"""Single pictures: read upright, in 8 bit, whatever their format; pairs of them; mixed with videos."""

import numpy as np
import pytest
import torch
from PIL import Image

from common.errors import InputError
from dataset_loader import DecodeError, get_kinetics_dataset, make_loader, open_source
from dataset_loader import pictures as module
from dataset_loader.pictures import decode_picture, find_pictures


@pytest.fixture
def picture() -> np.ndarray:
    """A smooth picture, no side or colour like another: uint8 [40, 60, 3]."""
    y, x = np.mgrid[:40, :60]
    return np.stack([4 * x, 6 * y, 2 * (x + y)], axis=-1).astype(np.uint8)


@pytest.fixture
def photos(tmp_path, picture):
    folder = tmp_path / "photos"
    (folder / "below").mkdir(parents=True)
    for name in ("a.jpg", "b.png", "c.webp", "below/d.TIFF", "below/e.jpeg"):
        Image.fromarray(picture).save(folder / name)
    (folder / ".hidden.jpg").write_bytes(b"")
    return folder


def test_formats(photos, picture):
    for path in find_pictures(photos):
        assert np.abs(decode_picture(path).astype(int) - picture).mean() < 4


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
def test_upright(tmp_path, picture, suffix):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    path = tmp_path / f"turned.{suffix}"
    Image.fromarray(np.rot90(picture)).save(path, exif=exif)
    assert np.abs(decode_picture(str(path)).astype(int) - picture).mean() < 4
    assert decode_picture(str(path), short_side=20).shape == (20, 30, 3)


def test_grey_16_bit_palette_and_transparent(tmp_path, picture):
    grey = picture[..., 0]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "grey16.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "grey16.tiff")
    for name in ("grey.png", "grey16.png", "grey16.tiff"):
        assert (decode_picture(str(tmp_path / name)) == grey[..., None]).all()
    Image.fromarray(picture).quantize(16).save(tmp_path / "palette.png")
    assert np.abs(decode_picture(str(tmp_path / "palette.png")).astype(int) - picture).mean() < 20
    Image.fromarray(np.dstack([picture, np.full((40, 60), 0, np.uint8)])).save(tmp_path / "clear.png")
    assert (decode_picture(str(tmp_path / "clear.png")) == 0).all()
    Image.fromarray(grey.astype(np.float32)).save(tmp_path / "real.tiff")
    with pytest.raises(DecodeError, match="floating-point numbers; save it with 8 or 16 bits"):
        decode_picture(str(tmp_path / "real.tiff"))


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_large_ones_are_shrunk(tmp_path, picture, suffix):
    large = np.kron(picture, np.ones((40, 40, 1), np.uint8))
    Image.fromarray(large).save(tmp_path / f"large.{suffix}")
    image = decode_picture(str(tmp_path / f"large.{suffix}"))
    assert image.shape == (512, 768, 3)
    small = np.asarray(Image.fromarray(image).resize((60, 40), Image.Resampling.BOX))
    assert np.abs(small.astype(int) - picture).mean() < 3


def test_too_large_and_damaged_ones_are_named(tmp_path, photos, monkeypatch):
    whole = (photos / "b.png").read_bytes()
    (photos / "f.png").write_bytes(whole[: len(whole) // 2])
    (photos / "g.jpg").write_text("no picture")
    for name in ("f.png", "g.jpg"):
        with pytest.raises(DecodeError, match=f"{name}.*cannot be decoded"):
            decode_picture(str(photos / name))
    monkeypatch.setattr(module, "PIXELS", 2000)
    with pytest.raises(DecodeError, match="60×40 pixels"):
        decode_picture(str(photos / "a.jpg"))


def test_pairs_of_pictures(photos):
    (photos / "g.jpg").write_text("no picture")
    dataset = get_kinetics_dataset(photos, image_size=32, pairing="mixed:video=1,crops=1,shifted=1", patch_size=8)
    loader = make_loader(dataset, 6)
    (batch,) = loader
    assert batch["video"].shape == (6, 2, 3, 32, 32)
    assert (batch["time"] == 0).all()
    assert list(loader.bad_files) == [str(photos / "g.jpg")]


def test_tiny_pictures(tmp_path):
    for k, size in enumerate([(1, 1), (2, 5), (300, 1)]):
        Image.new("RGB", size, (200, 100, 50)).save(tmp_path / f"tiny{'abc'[k]}.png")
    for pairing in ("crops", "shifted", "shifted_patches"):
        for sample in map(get_kinetics_dataset(tmp_path, image_size=16, pairing=pairing).__getitem__, range(3)):
            assert (sample["video"][:, 0] == 200).all()


def test_videos_and_pictures(clips, photos):
    dataset = get_kinetics_dataset(clips, photos=photos, image_size=32, pairing="mixed:video=1,shifted=1", visits=4)
    assert len(dataset.paths) == 6 + 5
    batches = list(make_loader(dataset, 11))
    still = torch.tensor([path.startswith(str(photos)) for batch in batches for path in batch["path"]])
    times = torch.cat([batch["time"] for batch in batches])
    assert still.sum() == 20
    assert (times[still] == 0).all()
    two = (times[:, 0] < times[:, 1])[~still]
    assert 0 < two.sum() < len(two)


def test_pictures_need_a_pairing_of_one_frame(clips, photos):
    with pytest.raises(InputError, match="5 pictures: the pairing video takes two frames"):
        get_kinetics_dataset(photos)
    with pytest.raises(InputError, match="the pairing jittered takes two frames"):
        get_kinetics_dataset(clips, photos=photos, schedule="0 shifted; 3 jittered")
    with pytest.raises(InputError, match="holds no picture"):
        get_kinetics_dataset(clips, photos=clips)


def test_a_folder_is_found_out(photos, clips):
    assert str(open_source(photos)) == "5 pictures"
    assert "video files" in str(open_source(clips))
