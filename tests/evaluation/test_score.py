"""Anyone's results, and the table of sources on the synthetic world."""

import json

import numpy as np

from benchmarks import synthetic_table
from cli.main import main
from evaluation.benchmarks.davis import Davis
from evaluation.protocols import protocol
from evaluation.run import evaluate
from tests.evaluation.worlds import (
    quiet,
    save,
    source,
)


def test_score_prints_the_numbers_of_any_method_s_masks(small_davis, tmp_path, capsys):
    rules = protocol("dino", size="32x48", top_k=2, context=2)
    result = evaluate(Davis(small_davis), source(), rules, tmp_path / "o", export=tmp_path / "e", report=quiet)
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
