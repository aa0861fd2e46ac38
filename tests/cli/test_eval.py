"""`siammae eval` and `siammae track` as a person uses them: from small data sets and real files to results."""

import json
import re
import subprocess
import sys
import weakref
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, ImageFilter

from cli.main import main
from common.errors import InputError
from dataset_loader.decoding import Video, decode_all
from dataset_loader.preparing.encoding import write_video
from dataset_loader.synthetic import synthetic_video
from evaluation.features import Source, pixel_features
from evaluation.protocols import protocol
from evaluation.track import points_to_mask, track
from ml.checkpoints import save_checkpoint
from ml.SiamMAE import build_model

H, W = 64, 96
ROOT = Path(__file__).parents[2]


@pytest.fixture
def root(tmp_path):
    """A workspace with a checkpoint `tiny`, epoch 3."""
    model = build_model("siammae_micro_patch8")
    for name in ("3", "last"):
        save_checkpoint(
            tmp_path / "checkpoints" / "tiny" / f"{name}.pt",
            dict(model=model.state_dict(), config=model.config, epoch=3),
        )
    return tmp_path


def test_every_kind_of_source(root, camvid, tmp_path, capsys):
    names = {}
    sources = ("tiny", "tiny/3", "untrained:tiny", "pixels", "copy", "oracle", "oracle:tiny")
    for number, source in enumerate(sources):
        words = [
            "eval",
            "camvid",
            "--data",
            camvid,
            "--out",
            tmp_path / str(number),
            "--source",
            source,
            "--root",
            root,
        ]
        assert main([str(w) for w in [*words, "--protocol", "rsp", "--size", "64x96", "--device", "cpu"]]) == 0
        content = json.loads((tmp_path / str(number) / "results.json").read_text())
        names[source] = content["source"]
        assert content["protocol"]["name"] == "rsp, changed" and content["protocol"]["radius"] == 30
        assert content["settings"] == {"device": "cpu", "half": False}
    assert names["tiny"]["weights"].startswith("sha256 ") and names["tiny/3"]["name"] == "tiny/3"
    assert names["untrained:tiny"]["name"] == "untrained (as tiny, seed 0)"
    assert names["untrained:tiny"]["weights"] != names["tiny"]["weights"] == names["oracle:tiny"]["weights"]
    assert names["oracle"]["name"] == "oracle (true labels as context), pixels"
    assert capsys.readouterr().out.count("mIoU") == 2 * len(sources)


def test_flags_override_the_protocol_of_the_benchmark(small_jhmdb_like, tmp_path):
    file, pictures = small_jhmdb_like
    words = ["eval", "joints", "--data", file, "--pictures", pictures, "--out", tmp_path / "out", "--source", "pixels"]
    options = ["--protocol=dino", "--radius", "3", "--no-min-max", "--frames", "3", "--device", "cpu"]
    assert main([str(word) for word in [*words, *options, "--export", tmp_path / "export"]]) == 0
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    expected = protocol("dino", {"size": "320x320"}, radius=3, min_max=False)
    assert content["protocol"] == {name: getattr(expected, name) for name in content["protocol"]}
    assert content["frames"] == 3 and content["videos"][0]["frames"] == 3
    assert len(json.loads((tmp_path / "export" / "dog.json").read_text())) == 3


@pytest.fixture
def small_jhmdb_like(tmp_path):
    for t in range(5):
        picture = np.random.default_rng(t).integers(0, 255, (H, W, 3)).astype(np.uint8)
        (tmp_path / "pictures" / "dog").mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(tmp_path / "pictures" / "dog" / f"{t}.png")
    entries = [{"frame": str(t), "joints": {"5": [30 + t, 20], "8": [60, 40]}} for t in (0, 2, 4)]
    file = tmp_path / "joints" / "dog.json"
    file.parent.mkdir()
    file.write_text(json.dumps({"joints": {"5": "nose", "8": "tail"}, "sequences": {"dog": entries}}))
    return file, tmp_path / "pictures"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["davis", "--data", "{camvid}"], "val.txt cannot be read"),
        (["camvid", "--data", "{camvid}", "--source", "no/7"], "no checkpoint no/7.*or as a source one of untrained:"),
        (["camvid", "--data", "{camvid}", "--source", "untrained:no"], "no checkpoint no"),
        (["camvid", "--data", "{camvid}", "--source", "pixels", "--size", "wide"], "size is 'wide'; expected such as"),
        (["camvid", "--data", "{camvid}", "--source", "pixels", "--temperature", "0"], "temperature is 0.0; expected"),
        (["camvid", "--data", "{camvid}", "--source", "pixels", "--sequences", "x"], "there is no video called x"),
        (["camvid", "--data", "{camvid}", "--source", "copy", "--frames", "1"], "following needs at least 2"),
        (["folder", "--data", "{camvid}/no.mp4", "--mask", "{camvid}/labels/0.png"], "no.mp4 does not exist"),
        (
            ["folder", "--data", "{camvid}/frames", "--mask", "{camvid}/labels/0.png", "--sequences", "x"],
            "there is no video called x among those of the list",
        ),
    ],
)
def test_a_mistake_gets_one_sentence(arguments, sentence, camvid, tmp_path, capsys):
    words = [word.format(camvid=camvid) for word in arguments]
    assert main(["eval", *words, "--out", str(tmp_path / "out"), "--device", "cpu"]) == 2
    said = capsys.readouterr().err
    assert re.search(sentence, said) and said.count("\n") == 1


def test_wrong_flags_are_answered_before_anything_heavy_is_imported():
    """All of them in one program: what it had imported in the end, none of them had."""
    wrong = {
        "joints --data x": "--pictures", "folder --data x": "--mask", "jhmdb --data x --split 7": "invalid choice '7'",
        "davis --data x --pictures y": "--pictures", "davis --data x --protocol none": "invalid choice 'none'",
        "dog --data x": "dog",
    }  # fmt: skip
    code = (
        "import sys; from cli.main import main\nfor line in sys.argv[1:]:\n"
        "    try: main(['eval', *line.split(), '--out', 'o'])\n"
        "    except SystemExit as end: print('\\0', end.code, file=sys.stderr, end='')\n"
        "print([m for m in ('torch', 'timm', 'av', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, *wrong], capture_output=True, text=True, cwd=ROOT)
    answers = done.stderr.split("\0 2")
    assert done.stdout.strip() == "[]" and len(answers) == len(wrong) + 1, done.stdout + done.stderr
    for answer, (line, said) in zip(answers, wrong.items(), strict=False):
        assert said in answer, line


# ------------------------------------------------------------------------------------------------ track


@pytest.fixture
def clip(tmp_path):
    """A video of 12 frames, 62×97 pixels (odd), at uneven times that do not begin at 0."""
    scene = synthetic_video(3, height=62, width=98, seconds=0.5, fps=24)
    times = np.cumsum([0.5, *[0.04, 0.04, 0.08] * 3, 0.04, 0.04])[: len(scene.frames)]
    frames = scene.frames.transpose(0, 2, 3, 1)[:, :, :97]
    write_video(tmp_path / "mine.mkv", frames, times, pixel_format="yuv444p")
    return tmp_path / "mine.mkv"


def test_anyone_s_video_file_is_followed_as_its_pictures_are(clip, tmp_path, capsys, monkeypatch):
    frames, _ = decode_all(clip)
    (tmp_path / "mine").mkdir()
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / "mine" / f"{number:05d}.png")
    (tmp_path / "marks").mkdir()
    Image.fromarray(points_to_mask(["30,20,2", "70,40,5"], (62, 97))).save(tmp_path / "marks" / "first.png")
    (tmp_path / "clips").mkdir()
    clip = clip.rename(tmp_path / "clips" / clip.name)
    words = ["eval", "folder", "--mask", tmp_path / "marks" / "first.png", "--source", "pixels", "--device", "cpu"]
    words += ["--protocol", "dino", "--size", "short64", "--videos"]
    for name, data in (("file", clip), ("pictures", tmp_path / "mine")):
        options = ["--data", data, "--out", tmp_path / name, "--export", tmp_path / name / "masks"]
        assert main([str(word) for word in [*words, *options]]) == 0
        assert "nothing to score against" in capsys.readouterr().out
    files = ["index.html", "pictures/mine.png", "pictures/mine.mp4", *(f"masks/mine/{t:05d}.png" for t in range(12))]
    for name in files:
        assert (tmp_path / "file" / name).read_bytes() == (tmp_path / "pictures" / name).read_bytes(), name
    whole = Video.each_frame
    monkeypatch.setattr(Video, "each_frame", lambda self: islice(whole(self), 7))
    options = ["--data", clip, "--out", tmp_path / "broken"]
    assert main([str(word) for word in [*words, *options]]) == 2
    assert "mine.mkv: gives fewer frames than the 12 that it states: get it again" in capsys.readouterr().err


def test_track_keeps_the_video_s_times_and_size(clip, tmp_path, capsys):
    out, options = tmp_path / "out", ["--source", "pixels", "--device", "cpu"]
    words = ["track", str(clip), "--points", "30,20,2", "70,40,5", "--out", str(out), *options]
    assert main(words) == 0
    captured = capsys.readouterr()
    assert "12/12" in captured.err and "frame/s" in captured.err and "dino, changed: short240" in captured.out
    frames, times = decode_all(clip)
    assert frames.shape[1:3] == (62, 97)
    drawn, shown = decode_all(out / "overlay.mp4")
    assert drawn.shape == (12, 62, 98, 3) and np.allclose(shown, times - times[0], atol=1e-4)
    masks = [np.array(Image.open(path)) for path in sorted((out / "masks").iterdir())]
    assert len(masks) == 12 and {mask.shape for mask in masks} == {(62, 97)}
    np.testing.assert_array_equal(masks[0], points_to_mask(["30,20,2", "70,40,5"], (62, 97)))
    assert set(np.unique(masks)) == {0, 2, 5}
    changed = np.abs(drawn[:, :, :97].astype(int) - frames).mean((1, 2, 3))
    assert (changed > 0.3).all()
    assert json.loads((out / "track.json").read_text())["protocol"]["size"] == "short240"
    before = (out / "overlay.mp4").read_bytes()
    assert main(words) == 2 and "exists already and is not overwritten" in capsys.readouterr().err
    assert (out / "overlay.mp4").read_bytes() == before
    (out / "overlay.mp4").unlink()  # as an interruption leaves it: ours, unfinished
    assert main(words) == 0 and (out / "overlay.mp4").read_bytes() == before


def test_track_from_a_mask(clip, tmp_path, capsys):
    mask = np.zeros((62, 97), np.uint8)
    mask[10:40, 20:60] = 9
    Image.fromarray(mask).save(tmp_path / "first.png")
    words = ["track", str(clip), "--out", str(tmp_path / "out"), "--source", "pixels"]
    words += ["--device", "cpu", "--size", "64x96"]
    assert main([*words, "--mask", str(tmp_path / "first.png")]) == 0
    assert len(list((tmp_path / "out" / "masks").iterdir())) == 12
    capsys.readouterr()
    Image.fromarray(mask[1:]).save(tmp_path / "small.png")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "letter.txt").write_text("mine")
    write_video(tmp_path / "one.mp4", np.zeros((1, 32, 32, 3), np.uint8), 25)
    other = ["track", str(clip), "--out", str(tmp_path / "other"), "--source", "pixels", "--device", "cpu"]
    for arguments, sentence in (
        (other, "mark what to follow: give either --mask FIRST.png or --points"),
        ([*other, "--mask", str(tmp_path / "small.png")], "the mask is 61×97, but the first frame is 62×97"),
        ([*other, "--points", "30,20", "30,x"], "the point '30,x' is not x,y,label, such as 120,80,1"),
        ([*other, "--points", "30,20,0"], "the point '30,20,0' is not x,y,label"),
        ([*other, "--points", "20,70,1"], "lies outside of the frame, which is 97 wide and 62 high"),
        (
            [*other, "--points", "20,30,1", "--size", "16x16"],
            "siammae track: the object 1 of the first mask covers the centre of none of the 1×1 patches",
        ),
        ([*other, "--points", "20,30,1", "--source", "copy"], "copy is a control of `siammae eval`"),
        (["track", str(tmp_path / "one.mp4"), "--points", "9,9,1"], "has 1 frame; following needs at least 2"),
        (["track", str(tmp_path / "no.mp4"), "--points", "9,9,1"], "no.mp4: cannot be read"),
        (["track", str(clip), "--points", "9,9", "--out", str(tmp_path / "taken"), *other[4:]], "is not overwritten"),
    ):
        assert main(arguments) == 2, arguments
        said = capsys.readouterr().err.splitlines()[-1]
        assert sentence in said, said
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["letter.txt"]
    assert not (tmp_path / "other").exists()


def test_track_plays_in_the_shape_and_order_of_its_video(tmp_path, capsys):
    """Pixels a third wider than high, and a clock that starts anew in the middle, as in joined transport streams."""
    frames = [np.full((48, 64, 3), 20 * t, np.uint8) for t in range(8)]
    parts = []
    for number in range(2):
        path = tmp_path / f"{number}.ts"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("mpeg2video", rate=25)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            stream.codec_context.sample_aspect_ratio = Fraction(4, 3)
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode(None))
        parts.append(path.read_bytes())
    (tmp_path / "joined.ts").write_bytes(b"".join(parts))
    words = ["track", str(tmp_path / "joined.ts"), "--points", "30,20", "--out", str(tmp_path / "out")]
    assert main([*words, "--source", "pixels", "--device", "cpu", "--size", "96x128"]) == 0, capsys.readouterr().err
    drawn, times = decode_all(tmp_path / "out" / "overlay.mp4")
    assert drawn.shape[1:] == (48, 86, 3) and len(drawn) == len(list((tmp_path / "out" / "masks").iterdir())) >= 14
    assert (np.diff(times) > 0).all() and np.diff(times).max() < 0.2


def test_a_jpeg_as_a_mask_takes_a_threshold(clip, tmp_path, capsys):
    disk = ((np.mgrid[:62, :97] - [[[30]], [[50]]]) ** 2).sum(0) < 300
    Image.fromarray((255 * disk).astype(np.uint8)).save(tmp_path / "m.jpg", quality=50)
    soft = Image.fromarray((255 * disk).astype(np.uint8)).filter(ImageFilter.GaussianBlur(2))
    soft.save(tmp_path / "m.png")
    words = ["track", str(clip), "--out", str(tmp_path / "out"), "--source", "pixels", "--device", "cpu"]
    for name in ("m.jpg", "m.png"):
        assert main([*words, "--mask", str(tmp_path / name)]) == 2
        assert re.search(r"holds \d+ labels: is it a JPEG, or antialiased\?", capsys.readouterr().err)
    assert main([*words, "--mask", str(tmp_path / "m.jpg"), "--threshold", "128"]) == 0
    assert np.unique(np.array(Image.open(tmp_path / "out" / "masks" / "00000.png"))).tolist() == [0, 1]


def test_a_folder_holds_one_track(clip, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["track", str(clip), "--out", str(out), "--source", "pixels", "--device", "cpu", "--size", "short128"]
    assert main([*words, "--points", "30,20,1"]) == 0
    (out / "overlay.mp4").unlink()  # as an interruption leaves it
    before = {path: path.read_bytes() for path in out.rglob("*.*")}
    write_video(tmp_path / "short.mkv", decode_all(clip)[0][:5], 25, pixel_format="yuv444p")
    short = ["track", str(tmp_path / "short.mkv"), *words[2:]]
    for arguments, sentence in (
        ([*short, "--points", "30,20,1"], r"out holds results of another run \(video was .* bytes was"),
        ([*words, "--points", "30,20,2"], r"out holds results of another run \(first was"),
        ([*words, "--points", "30,20,1", "--context", "3"], "protocol context was 7 and is now 3"),
    ):
        capsys.readouterr()
        assert main(arguments) == 2 and re.search(sentence, capsys.readouterr().err)
    assert {path: path.read_bytes() for path in out.rglob("*.*")} == before
    assert main([*words, "--points", "30,20,1"]) == 0


def test_tracking_holds_a_few_batches_of_frames_at_most():
    class Frame(np.ndarray):
        """An array that can be counted."""

    known: list[weakref.ref] = []
    alive: list[int] = []

    def frames():
        for k in range(40):
            frame = np.random.default_rng(k).integers(0, 255, (32, 48, 3)).astype(np.uint8).view(Frame)
            known.append(weakref.ref(frame))
            alive.append(sum(reference() is not None for reference in known))
            yield frame

    first = points_to_mask(["22,18,1"], (32, 48))
    source = Source("pixels", lambda images: pixel_features(images, 4), 4)
    rules = protocol("dino", size="32x48", context=3)
    assert sum(1 for _ in track(frames(), first, source, rules, batch=2)) == 40
    assert 3 <= max(alive) <= 9, alive  # three batches, and what the loops have in hand


def test_points_are_disks_of_a_twentieth_of_the_short_side():
    mask = points_to_mask(["100,50,3", "110,50,7"], (200, 300))
    assert mask[50, 100 - 10] == 3 and mask[50, 100 - 11] == 0 and mask[60, 100] == 3 and mask[61, 100] == 0
    assert mask[50, 105] == 7  # the later one lies on top
    assert points_to_mask(["3,2"], (5, 9)).sum() == 1
    with pytest.raises(InputError, match="outside"):
        points_to_mask(["300,50,1"], (200, 300))


def test_an_object_below_a_patch_is_refused_rather_than_lost():
    mask = np.zeros((32, 48), np.uint8)
    mask[8:24, 8:24], mask[30, 40] = 1, 2
    frames = [np.zeros((32, 48, 3), np.uint8)] * 3
    source = Source("pixels", lambda images: pixel_features(images, 16), 16)
    with pytest.raises(InputError, match="the object 2 of the first mask covers the centre of none of the 2×3 patches"):
        next(track(frames, mask, source, protocol("dino", size="32x48")))
