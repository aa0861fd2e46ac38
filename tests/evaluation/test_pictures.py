"""Pictures of results: what is drawn where, and a page that opens from the disk; nothing fetched, nothing astray."""

import re
import shutil
import socket
import subprocess

import numpy as np
import pytest
import torch
from PIL import Image

from cli.eval import write_mp4
from common.errors import InputError
from dataset_loader.decoding import decode_all
from evaluation.benchmarks.camvid import CamVid
from evaluation.benchmarks.davis import Davis
from evaluation.benchmarks.folder import Folder
from evaluation.benchmarks.jhmdb import JHMDB
from evaluation.benchmarks.joints import Joints
from evaluation.controls import Copy
from evaluation.features import feature_source
from evaluation.page import write_page
from evaluation.pictures import (
    ADDED,
    BAND,
    COLUMNS,
    MISSED,
    STRIP_WIDTH,
    SWAPPED,
    VIDEO_WIDTH,
    affinity_figure,
    difference,
    even,
    overlay,
    palette,
    save_mask,
    strip,
    tracking_strip,
)  # fmt: skip
from evaluation.protocols import protocol
from evaluation.run import evaluate

RULES = protocol("dino", size="32x48", top_k=2, context=2)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def test_colours_are_many_and_background_is_black():
    colours = palette()
    assert colours.shape == (256, 3) and colours[0].tolist() == [0, 0, 0]
    assert len(np.unique(colours, axis=0)) > 250
    apart = np.abs(colours[1:13, None].astype(int) - colours[None, 1:13]).sum(-1) + 999 * np.eye(12, dtype=int)
    assert apart.min() > 60  # a dozen objects are told apart
    assert np.abs(np.diff(colours[:30].astype(int), axis=0)).sum(1).min() > 150


def test_masks_come_back_as_labels(tmp_path):
    mask = np.arange(256, dtype=np.uint8).reshape(8, 32)
    save_mask(tmp_path / "m.png", mask)
    picture = Image.open(tmp_path / "m.png")
    np.testing.assert_array_equal(np.array(picture), mask)
    np.testing.assert_array_equal(np.array(picture.convert("RGB")), palette()[mask])


def test_an_overlay_is_half_transparent_within_a_contour():
    frame, mask = np.full((20, 30, 3), 100, np.uint8), np.zeros((20, 30), np.uint8)
    mask[5:15, 10:20] = 3
    drawn = overlay(frame, mask)
    assert (frame == 100).all()
    assert drawn[10, 15].tolist() == ((100 + palette()[3].astype(int)) // 2).tolist()
    assert (drawn[10, 10] == palette()[3]).all() and (drawn[0, 0] == 100).all() and (drawn[10, 25] == 100).all()


def test_what_differs():
    frame = np.full((4, 6, 3), 100, np.uint8)
    truth = np.array([[0, 0, 1, 1, 2, 11]] * 4, np.uint8)
    result = np.array([[0, 1, 0, 1, 1, 5]] * 4, np.uint8)
    drawn = difference(frame, truth, result, void=11)[0].tolist()
    grey = drawn[0]
    assert grey == [110, 110, 110] and drawn[1:] == [list(ADDED), list(MISSED), grey, list(SWAPPED), grey]
    joints = np.array([[1.0, 1.0], [np.nan, np.nan], [20.0, 8.0]])
    found = np.array([[1.0, 1.0], [5.0, 5.0], [-1.0, -1.0]])
    canvas = np.full((16, 40, 3), 100, np.uint8)
    assert (difference(canvas, joints, found)[8, 8:12] == 110).all()  # no line to one that was lost
    found[2] = 4, 8
    assert not (difference(canvas, joints, found)[8, 8:12] == 110).any()
    assert not (overlay(canvas, joints)[8, 20] == 100).all()


def test_a_strip_has_rows_of_truth_prediction_and_difference(small_davis):
    (video,) = Davis(small_davis).videos(["ant"])
    truths = dict(enumerate([video.first] * len(video)))
    panel = round(STRIP_WIDTH * 32 / 48)
    assert strip(video, truths, [video.first] * 6).shape == (BAND + 3 * panel, 5 * STRIP_WIDTH, 3)
    assert strip(video, {0: video.first}, [video.first] * 6).shape == (BAND + panel, 5 * STRIP_WIDTH, 3)
    assert even(np.zeros((3, 5, 3), np.uint8)).shape == (4, 6, 3)


@pytest.mark.parametrize(("kind", "root"), [(Davis, "small_davis"), (CamVid, "small_camvid"), (JHMDB, "small_jhmdb")])
def test_nothing_is_written_into_a_data_set_and_nothing_fetched(kind, root, request, tmp_path, monkeypatch):
    root = request.getfixturevalue(root)
    benchmark = kind(root)

    def listing():
        return {
            path: (path.stat().st_mtime_ns, path.stat().st_size, path.read_bytes() if path.is_file() else b"")
            for path in [root, *root.rglob("*")]
        }

    def refused(*_, **__):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "create_connection", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    before = listing()
    for source in (feature_source("pixels"), Copy()):
        places = dict(out=tmp_path / source.name, export=tmp_path / "exports" / source.name)
        evaluate(benchmark, source, RULES, **places, write_video=write_mp4, report=lambda line: None)
        for inside in (root, root / "results", root / "x" / ".." / "y"):
            for place in (dict(out=inside), dict(out=tmp_path / "elsewhere", export=inside)):
                with pytest.raises(InputError, match=r"lies in the data set's folder .*, where nothing is written"):
                    evaluate(benchmark, source, RULES, **place)
        (tmp_path / "link").unlink(missing_ok=True)
        (tmp_path / "link").symlink_to(root)
        with pytest.raises(InputError, match="lies in the data set's folder"):
            evaluate(benchmark, source, RULES, tmp_path / "link" / "out")
    assert listing() == before


def test_the_folders_of_single_files_are_a_data_set_s_too(small_davis, small_keypoints, tmp_path, monkeypatch):
    file, pictures = small_keypoints
    mask = small_davis / "Annotations" / "480p" / "two" / "00000.png"
    frames = small_davis / "JPEGImages" / "480p" / "two"
    for own, folders in (
        (Joints(file, pictures), (file.parent, pictures)),
        (Folder(frames, mask), (frames, mask.parent)),
    ):
        for inside in folders:
            for place in (dict(out=inside / "out"), dict(out=tmp_path / "elsewhere", export=inside / "out")):
                with pytest.raises(InputError, match=r"lies in the data set's folder .*, where nothing is written"):
                    evaluate(own, Copy(), RULES, **place, report=lambda line: None)
    assert not (tmp_path / "elsewhere").exists()
    monkeypatch.chdir(mask.parent)  # whoever works beside a mask may put results there
    evaluate(Folder(frames, mask), Copy(), RULES, "out", report=lambda line: None)


@pytest.fixture
def page(small_davis, tmp_path):
    """A run with pictures and videos: (its folder, its result)."""
    (small_davis / "ImageSets" / "2017" / "val.txt").write_text("two\nant\n")
    out = tmp_path / "a run & its <page>"
    result = evaluate(
        Davis(small_davis), feature_source("pixels"), RULES, out, write_video=write_mp4, report=lambda _: 0
    )
    return out, result


def test_the_page_leads_with_the_worst_and_links_what_lies_beside_it(page):
    out, result = page
    html = (out / "index.html").read_text()
    values = {r["video"]: Davis(out).value(r["scores"]) for r in result.records}
    names = re.findall(r"</b>(\w+), \d frames</h2>", html)
    assert names == sorted(values, key=values.get) and len(set(values.values())) == 2
    assert f"J&amp;F-Mean {100 * min(values.values()):.1f}" in html and str(RULES) in html
    links = re.findall(r'src="([^"]+)"', html)
    assert sorted(links) == ["pictures/ant.mp4", "pictures/ant.png", "pictures/two.mp4", "pictures/two.png"]
    assert all((out / link).is_file() for link in links) and "http" not in html and "file:" not in html
    frames, times = decode_all(out / "pictures" / "ant.mp4")
    height = BAND + round(VIDEO_WIDTH * 32 / 48)
    assert frames.shape == (6, height, 3 * VIDEO_WIDTH, 3) and np.allclose(np.diff(times), 0.1)
    start = frames[0, BAND:, : 3 * VIDEO_WIDTH].astype(int)
    truth, prediction, differ = np.split(start, 3, axis=1)
    assert np.abs(truth - prediction).mean() < 3 < np.abs(truth - differ).mean()  # in frame 0 nothing differs


def test_odd_names_are_escaped(tmp_path):
    entries = [("x/<b>é 100%", 0.5, 3), ("plain", float("nan"), 2)]
    write_page(tmp_path, ["a < b"], entries, measure="J&F", notes={"plain": ["a mask < its picture"]})
    html = (tmp_path / "index.html").read_text()
    assert 'src="pictures/x/%3Cb%3E%C3%A9%20100%25.png"' in html and "x/&lt;b&gt;é 100%" in html and "<b>é" not in html
    assert html.index("x/&lt;b") < html.index("plain, 2 frames")  # without a score: last
    assert html.index("plain, 2 frames") < html.index("<p>a mask &lt; its picture</p>")


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome is installed")
def test_the_page_opens_in_a_browser_from_the_disk(page, tmp_path):
    out, _ = page
    probe = """<script>addEventListener("load", () => setTimeout(() => { document.body.innerHTML = "<pre>"
      + [...document.images].map(i => i.naturalWidth).concat([...document.querySelectorAll("video")]
      .map(v => (v.error ? "error " + v.error.message : v.videoWidth + " in " + v.duration + " s")))
      .join("|") + "</pre>" }, 500))</script>"""
    html = (out / "index.html").read_text()
    (out / "probe.html").write_text(html.replace("</html>", probe + "</html>"))
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command = [CHROMIUM, *options, "--virtual-time-budget=4000", "--timeout=20000", "--dump-dom"]
    done = subprocess.run([*command, (out / "probe.html").as_uri()], capture_output=True, text=True, timeout=120)
    (found,) = re.findall(r"<pre>([^<]*)</pre>", done.stdout)
    pictures, videos = found.split("|")[:2], found.split("|")[2:]
    assert set(pictures) == {str(3 * STRIP_WIDTH), str(5 * STRIP_WIDTH)}
    assert sorted(videos) == [f"{3 * VIDEO_WIDTH} in 0.4 s", f"{3 * VIDEO_WIDTH} in 0.6 s"]


# ------------------------------------------------------------------------------------------------ the notebook's


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
