"""Anyone's results, what the official tool counts of them, and the table of sources on the synthetic world."""

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from benchmarks import synthetic_table
from cli.main import main
from evaluation.benchmarks.davis import Davis
from evaluation.metrics import region_and_contour
from evaluation.protocols import protocol
from evaluation.run import evaluate, records
from tests.evaluation.worlds import quiet, save, source

RULES = protocol("dino", size="32x48", top_k=2, context=2)


def test_score_prints_the_numbers_of_any_method_s_masks(small_davis, tmp_path, capsys):
    result = evaluate(Davis(small_davis), source(), RULES, tmp_path / "o", export=tmp_path / "e", report=quiet)
    for name in ("two", "ant", "cow"):
        sorted((tmp_path / "e" / name).iterdir())[-1].unlink()  # not scored, as the first one
        (tmp_path / "e" / name / "00000.png").unlink()
    words = ["score", "davis", str(tmp_path / "e"), "--data", str(small_davis), "--out", str(tmp_path / "s")]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert f"{100 * result.row['J&F-Mean']:.1f}" in said and "two" in said
    for name in ("global_results.csv", "per-sequence_results.csv"):
        assert (tmp_path / "s" / name).read_bytes() == (tmp_path / "o" / name).read_bytes()
    for spoil, sentence in (
        (lambda f: f.unlink(), "00002.png does not exist"),
        (lambda f: save(f, np.zeros((32, 48, 3), np.uint8)), r"00002.png is a colour picture (RGB)"),
        (lambda f: save(f, np.zeros((16, 24), np.uint8)), "00002.png is 16×24, but its picture"),
        (lambda f: save(f, np.full((32, 48), 9, np.uint8)), "two, frame 2: label 9 in the result, of 2 objects"),
    ):
        spoil(tmp_path / "e" / "two" / "00002.png")
        assert main([*words[:-1], str(tmp_path / "t")]) == 2
        assert sentence in capsys.readouterr().err
    for path in (tmp_path / "e" / "two").iterdir():
        path.unlink()
    (tmp_path / "e" / "two").rmdir()
    assert main([*words[:-1], str(tmp_path / "t")]) == 2
    assert "two does not exist: expected the results of two" in capsys.readouterr().err


def test_the_table_on_the_synthetic_world(tmp_path, capsys):
    out = tmp_path / "table.json"
    synthetic_table.main(
        ["--sources", "copy", "pixels", "--seeds", "3", "--side", "48", "--frames", "6", "--out", str(out)]
    )
    rows = json.loads(out.read_text())["rows"]
    ceiling = rows.pop("true motion")
    assert rows.keys() == {"copy", "pixels"} and ceiling["d_avg"] == 100 and ceiling["J&F"] > 80
    assert all(row["J&F"] < ceiling["J&F"] and 0 < row["d_avg"] < 100 for row in rows.values())
    assert "| true motion |" in capsys.readouterr().out


def evaluated(root, *names):
    davis = Davis(root)
    return {r["video"]: r["scores"] for r in records(davis, davis.videos(names), source(), RULES)}


def official(root, name, results):
    """What the official tool does: every mask but the first and the last, results by the names of the masks."""
    files = sorted((root / "Annotations" / "480p" / name).glob("*.png"))
    truth = [np.array(Image.open(file)) for file in files]
    values = [
        region_and_contour(mask, results.get(file.stem, np.zeros_like(mask)), int(truth[0].max()))
        for file, mask in zip(files[1:-1], truth[1:-1], strict=True)
    ]
    return np.mean(values, axis=0)  # [2, M]


@pytest.mark.parametrize("missing", ["00002", "00005", "extra"])
def test_the_frames_that_the_official_tool_scores(missing, small_davis, tmp_path, capsys):
    """A picture is missing, within or at the end, or there is one more than masks."""
    pictures = small_davis / "JPEGImages" / "480p" / "ant"
    if missing == "extra":
        shutil.copy(pictures / "00005.png", pictures / "00005 (1).png")
        said = r"00005 \(1\).png without a mask: followed, but not scored"
    else:
        (pictures / f"{missing}.png").unlink()
        said = f"{missing}.png without a picture: scored against an empty mask"
    davis, out = Davis(small_davis), tmp_path / "out"
    evaluate(davis, source(), RULES, out, names=["ant"], export=tmp_path / "masks")
    assert re.search(f"^ant: {said}", capsys.readouterr().out, re.MULTILINE)
    found = json.loads((out / "results.json").read_text())["videos"][0]["scores"]
    assert re.search(said, found["notes"][0])
    results = {path.stem: np.array(Image.open(path)) for path in (tmp_path / "masks" / "ant").glob("*.png")}
    j, f = official(small_davis, "ant", results)
    assert found["objects"][0]["J-Mean"] == pytest.approx(j[0], abs=1e-15)
    assert found["objects"][0]["F-Mean"] == pytest.approx(f[0], abs=1e-15)


def test_label_numbers_with_gaps_are_counted_as_officially_and_said(small_davis, make):
    before = evaluated(small_davis, "two")["two"]
    for t in range(4):
        labels = make.boxes((4, 4 + t, 4 + 3 * t), (9, 20, 8))
        make.save(small_davis / "Annotations/480p/two" / f"0000{t}.png", labels)
    after = evaluated(small_davis, "two")["two"]
    assert len(after["objects"]) == 9 and [after["objects"][k - 1]["J-Mean"] for k in (4, 9)] == [
        entry["J-Mean"] for entry in before["objects"]
    ]
    value = f"{100 * Davis(small_davis).value(before):.1f}"
    assert after["notes"] == [
        "the labels go up to 9, but 7 of them never occur and score 1, as officially; over the 2 that occur "
        f"J&F-Mean is {value}"
    ]
