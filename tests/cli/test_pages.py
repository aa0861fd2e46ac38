"""The pages in a real browser: clicks, sliders, keys and fingers, and no word on the console."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cli.demo import report
from cli.main import main

ROOT = Path(__file__).parents[2]


def write_runs(root, steps=60):
    """Two runs that differ in their mask ratio, of 3 epochs with validation, one with the figures of two epochs."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for ratio in (0.5, 0.95):
        name = f"mask{ratio:g}"
        losses = (1 / np.sqrt(np.arange(1, steps + 1)) * (1 + ratio) + rng.normal(0, 0.01, steps)).tolist()
        lines, texts, tests, per = [], [], [], steps // 3
        for epoch in range(1, 4):
            row = losses[(epoch - 1) * per : epoch * per]
            lines += [
                dict(
                    step=(epoch - 1) * per + k,
                    epoch=epoch,
                    loss=loss,
                    lr=1e-3 * k,
                    pairs_per_second=50.0 + k,
                    waiting=0.1,
                )
                for k, loss in enumerate(row, 1)
            ]
            texts.append(f"Epoch {epoch} - Avg Loss: {np.mean(row)} Losses - {row}\n")
            tests.append(f"Epoch {epoch} - Avg Loss: {np.mean(row) + 0.1} Losses - [1.0]\n")
        folder = root / "checkpoints" / name
        for path in (folder, root / "losses", root / "test_losses"):
            path.mkdir(parents=True, exist_ok=True)
        (root / "losses" / f"{name}.txt").write_text("".join(texts))
        (root / "losses" / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (root / "test_losses" / f"{name}.txt").write_text("".join(tests))
        train = dict(epochs=3, steps_per_epoch=per, batch_size=4)
        (folder / "config.json").write_text(json.dumps(dict(model=dict(mask_ratio=ratio), train=train, run=None)))
    for epoch in (1, 3):
        Image.fromarray(np.full((20, 40, 3), 80 * epoch, np.uint8)).save(folder / f"{epoch}.png")


@pytest.fixture(scope="module")
def report_page(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    write_runs(root)
    assert main(["report", str(root), "--out", str(root / "report.html"), "--samples", "None"]) == 0
    return root / "report.html"


RANGE = "return charts[0].x"


def test_report_zooms_hovers_hides_and_sorts(browser, report_page):
    browser.open(report_page)
    headings = browser.run("return [...document.querySelectorAll('.chart h3')].map((h) => h.firstChild.textContent)")
    assert headings == ["loss", "learning rate", "pairs per second", "waiting for data"]
    assert browser.run(RANGE) == [0, 60]
    browser.drag(".chart.main svg", [(0.3, 0.5), (0.45, 0.52), (0.6, 0.51)])
    low, high = browser.run(RANGE)
    assert 10 < low < 22 and 30 < high < 40, (low, high)
    assert browser.run("return charts[1].x") == [low, high]  # all share the axis
    browser.click("#in")
    assert browser.run(RANGE)[0] > low
    browser.click("#right")
    browser.click("#reset")
    assert browser.run(RANGE) == [0, 60]
    browser.drag(".chart.main svg", [(0.3, 0.3), (0.6, 0.6)])  # a box chooses the values as well
    assert browser.run("return charts[0].yView !== null && charts[1].yView === null")
    browser.click("#reset")

    browser.hover(".chart.main svg", 0.5, 0.5)
    said = browser.run("return document.querySelector('.chart.main .tip').innerText")
    assert 27 <= int(said.split()[1]) <= 33 and "mask0.5" in said and "mask0.95, validation" in said
    browser.keys(".chart.main svg", "+")
    low, high = browser.run(RANGE)
    assert high - low < 60
    browser.keys(".chart.main svg", "0")
    assert browser.run(RANGE) == [0, 60]

    browser.slide("#axis", "pairs")
    assert browser.run(RANGE) == [0, 240]
    browser.click(".chart.main h3 button")
    assert browser.run("return charts[0].y[1] < 1 && charts[0].y[0] < 0")  # logarithms
    browser.slide("#smooth", 0.9)
    assert browser.run("return document.querySelector('#smooth + output').textContent") == "90 %"

    assert browser.run("return charts[0].curves.length") == 4
    browser.click("#table tbody tr:first-child input")
    assert browser.run("return charts[0].curves.map((c) => c.run.name)") == ["mask0.95"] * 2
    browser.click("#table th:nth-child(3)")  # last loss
    order = "return [...document.querySelectorAll('#table tbody label')].map((e) => e.textContent)"
    first = browser.run(order)
    browser.click("#table th:nth-child(3)")
    assert browser.run(order) == first[::-1]
    assert browser.console() == []


def test_report_shows_pictures_of_epochs_and_both_themes(browser, report_page, tmp_path):
    browser.open(report_page)
    shown = "return document.querySelector('#figures figcaption').textContent"
    assert browser.run(shown) == "mask0.95, its first pair after epoch 3"
    last = browser.run("return document.querySelector('#figures img').src")
    browser.slide("#epoch", 0)
    assert browser.run(shown).endswith("epoch 1")
    assert browser.run("return document.querySelector('#figures img').src") != last
    assert browser.run("return document.querySelector('#figures img').naturalWidth") == 40
    back = "return getComputedStyle(document.body).backgroundColor"
    browser.theme("light")
    light = browser.run(back)
    browser.theme("dark")
    assert browser.run(back) != light
    browser.click("button.theme")  # the reader's own choice
    assert browser.run(back) == light
    assert browser.console() == []


@pytest.mark.slow
def test_report_fits_a_phone_and_its_fingers(chromium, report_page):
    with chromium(390, 800, touch=True) as browser:
        browser.open(report_page)
        assert browser.run("return [document.documentElement.scrollWidth, innerWidth]") == [390, 390]
        browser.drag(".chart.main svg", [(0.3, 0.5), (0.6, 0.5)])  # one finger reads values
        assert browser.run(RANGE) == [0, 60]
        browser.click("#in")
        browser.until("charts[0].x[1] - charts[0].x[0] < 60", 20)
        assert browser.console() == []


def test_the_demo_ends_with_a_report_of_its_runs(tmp_path):
    write_runs(tmp_path)
    page = report(tmp_path, ["mask0.95"], tmp_path / "out" / "report.html")
    assert '"name":"mask0.95"' in page.read_text() and '"name":"mask0.5"' not in page.read_text()


def test_explore_writes_a_page_of_a_video_with_predictions(clips, browser, tmp_path, capsys):
    out = tmp_path / "page.html"
    video = sorted(clips.glob("*.mp4"))[0]
    line = ["explore", str(video), "--out", str(out), "--frames", "5", "--root", str(ROOT), "--device", "cpu"]
    assert main([*line, "--size", "64x88", "--source", "siammae_micro_64"]) == 0
    assert "5 frames of 8×11 patches" in capsys.readouterr().out
    browser.open(out)
    assert browser.run("return DATA.names")[0] == "0.00 s"
    browser.click("#predict")
    said = "document.querySelector('#ratio + output').textContent"
    assert browser.run(f"return {said}") == "95 %, 3 of 64 visible"  # the checkpoint's own ratio
    picture = "document.querySelectorAll('#panels img')[3].src"
    first = browser.run(f"return {picture}")
    browser.slide("#ratio", 0)
    assert browser.run(f"return {said}") == "50 %, 32 of 64 visible"
    assert browser.run(f"return {picture}") != first
    browser.click("#sets button:nth-child(2)")
    assert browser.run("return document.querySelectorAll('#sets [aria-pressed=true]').length") == 1
    browser.click("#sets button:last-child")
    assert browser.run(f"return {said}") == "98 %, 1 of 64 visible"
    chosen = browser.run(f"return {picture}")
    browser.click("#panels figure:nth-child(3) .picture", 0.9, 0.9)
    assert browser.run(f"return {picture}") != chosen
    browser.slide("#pair", 2)
    assert browser.console() == []


def test_explore_refuses_what_it_cannot_show(clips, tmp_path, capsys):
    video = str(sorted(clips.glob("*.mp4"))[0])
    for line, said in (
        ([video, "--out", str(tmp_path / "x.png")], "ends in .html"),
        ([video, "--frames", "1"], "frames is 1"),
        ([video, "--start", "500"], "has 60 frames"),
        ([video, "--source", "copy"], "is a control"),
        ([str(tmp_path / "none.mp4")], "none.mp4"),
    ):
        assert main(["explore", *line, "--root", str(ROOT)]) == 2
        assert said in capsys.readouterr().err


def test_report_refuses_what_is_no_page_and_missing_runs(tmp_path, capsys):
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "x.pdf")]) == 2
    assert "ends in .html" in capsys.readouterr().err
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "x.html")]) == 2
    assert "no run lies below" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_report_watches_runs_that_go_on(tmp_path):
    write_runs(tmp_path)
    out, log = tmp_path / "report.html", tmp_path / "losses" / "mask0.5.txt"
    command = [sys.executable, "-m", "cli.main", "report", str(tmp_path), "--out", str(out), "--samples", "None"]
    with subprocess.Popen(
        [*command, "--watch", "--every", "0.2"], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert '"refresh":0.2' in out.read_text()
        log.write_text(log.read_text() + "Epoch 4 - Avg Loss: 0.25 Losses - [0.25]\n")
        assert process.stdout.readline()
        assert '"4 of 3"' in out.read_text()
        process.send_signal(2)
        assert process.wait(60) == 130
    assert '"refresh":0,' in out.read_text()  # the page that stays does not load itself again
