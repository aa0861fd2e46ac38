"""`siammae learn`: a model of pairs and one of clips, beside copying; on fewer held-out samples than usual."""

import json

import pytest

import cli.motion
import cli.wiring


@pytest.mark.parametrize(
    ("preset", "columns", "parts", "pictures"),
    [
        ("smoke", "model | copy | copy × factor | mean | wrong f1", ("all",), {".png"}),
        pytest.param(
            "mae_st_large_smoke", "model | copy | copy × factor | mean", ("all", "seen", "unseen"), {".png", ".gif"},
            marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
def test_learn_compares_with_copying(preset, columns, parts, pictures, clips, quick, tmp_path, capsys, monkeypatch):
    frames, fixed_dataset = cli.motion.frames, cli.wiring.fixed_dataset
    monkeypatch.setattr(cli.motion, "frames", lambda data, size, count: frames(data, size, 8))
    monkeypatch.setattr(cli.wiring, "fixed_dataset", lambda *given, visits: fixed_dataset(*given, visits=1))
    options = ["--preset", preset, "--steps", "2", "--held-out", "0.2", "--family", "family1"]
    assert quick("learn", "--data", clips, "--out", tmp_path, *options) == 0
    said = capsys.readouterr().out
    assert f"| checkpoint | which | {columns} | model / copy |" in said
    assert all(f"| untrained | {part} |" in said for part in parts)
    assert {path.suffix for path in tmp_path.glob("learn_*")} == {".json", ".md", *pictures}
    (numbers,) = tmp_path.glob("learn_*.json")
    assert bool(json.loads(numbers.read_text())["motion"]) == (preset == "smoke")
