"""The benchmarks of training run, in smoke size, and say what they should; their figures say nothing here."""

import json
from dataclasses import replace

import pytest
import torch

from benchmarks import gpu_train, training_speed
from benchmarks.counting import attention_forward, count, least_products, noise_batch
from common.errors import InputError
from ml.SiamMAE import build_model

ROW = {"median": 1.0, "low": 0.9, "high": 1.1}
PROCESSES = {"seconds": {"alone": 1.0, "both": 2.0}, "rows": {"two processes": dict(ROW)}}
MEMORY = [{"model": "m", "checkpointing": False, "forward MB a sample": 1.0}]


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_every_row_of_the_training_speed_is_there(whole, tmp_path, monkeypatch):
    """whole: with what starts programs of its own: two processes that train together, and each model's memory."""
    if not whole:
        monkeypatch.setattr(training_speed, "measure_processes", lambda settings: PROCESSES)
        monkeypatch.setattr(training_speed, "measure_memory", lambda settings: MEMORY)
    training_speed.main(["--smoke", "--out", str(tmp_path / "speed.json")])
    speed = json.loads((tmp_path / "speed.json").read_text())
    expected = {
        *training_speed.DEMANDS, "speed to explicit baseline", "checkpointing, time", "fused AdamW to foreach",
        "fused AdamW to plain",
    }  # fmt: skip
    assert speed["rows"].keys() == expected
    assert all(0 < row["low"] <= row["median"] <= row["high"] for row in speed["rows"].values())
    assert all(speed["rows"][name]["at_least"] == least for name, least in training_speed.DEMANDS.items())
    assert all(seconds > 0 for seconds in speed["seconds"].values())
    text = training_speed.table(speed)
    assert all(name in text for name in expected) and "asked ≥ 0.95" in text
    assert "MISSED" in training_speed.table({**speed, "rows": {"x": {**ROW, "at_least": 1.7}}})
    assert "MISSED" not in training_speed.table({**speed, "rows": {"x": ROW}})
    if whole:
        assert [row["checkpointing"] for row in speed["memory"]] == [False, True] * 2  # of pairs, and of clips
        for all_kept, less in zip(speed["memory"][::2], speed["memory"][1::2], strict=True):
            assert less["kept MB a sample"] < 0.5 * all_kept["kept MB a sample"]
        for row in speed["memory"]:  # the peak holds at least most of what is kept; Linux counts pages a little late
            assert 0.5 * row["kept MB a sample"] < row["forward MB a sample"] <= 1.02 * row["backward MB a sample"]


def test_the_ways_are_called_in_turn_and_the_first_round_does_not_count():
    called = []
    seconds = training_speed.in_turn({"a": lambda: called.append("a"), "b": lambda: called.append("b")}, 2)
    assert sorted(called[:2]) == ["a", "b"] and called[2:] == ["a", "b", "b", "a"]
    assert [len(values) for values in seconds.values()] == [2, 2]
    assert training_speed.ratio([2.0, 4.0, 9.0], [1.0, 2.0, 3.0], factor=2)["median"] == 4


def test_what_the_gpu_script_measures(clips, tmp_path, capfd):
    gpu_train.main(["--smoke", "--data", str(clips), "--out", str(tmp_path / "out"), "--workers", "0"])
    result = json.loads((tmp_path / "out" / "gpu_train.json").read_text())
    (name,) = gpu_train.SMOKE.models
    found = result["models"][name]
    assert [row["what"] for row in found["rows"]][-3:] == ["futures=2", "checkpointing", "decoder in float32"]
    assert found["best"]["batch"] in gpu_train.SMOKE.batches
    for row in found["rows"]:
        assert row["pairs_a_second"] > 0
    best = found["best"]
    flops = found["gflop_a_pair"] * 1e9
    assert best["share"] == pytest.approx(best["pairs_a_second"] * flops / (found["matrix_tflops"] * 1e12))
    assert sum(found["profile"]["kinds"].values()) == pytest.approx(1)
    assert found["profile"]["kinds"]["matrix products"] > 0.02
    assert 0 < result["end_to_end"]["waiting"] < 1
    text = (tmp_path / "out" / "gpu_train.txt").read_text()
    assert name in text and "waiting" in text and "matrix products" in text


def test_its_flops_are_those_that_are_counted():
    model = build_model("siammae_micro_patch8", mask_ratio=0.95)
    for futures in (1, 2):
        counted = count(lambda f=futures: model(**noise_batch(model, 1, f))[0]).flops / futures
        assert gpu_train.flops_a_pair(model, futures) == pytest.approx(counted, rel=1e-3)
    assert least_products(model, 2, 64) == 2 * least_products(model, 1, 64)
    assert attention_forward(model, 2, 64)[0] == 2 * attention_forward(model, 1, 64)[0]


def test_without_time_it_says_what_it_left_out():
    settings = replace(gpu_train.SMOKE, budget=-1)
    result = gpu_train.measure(settings, torch.device("cpu"), None, 0)
    assert result["left_out"] == list(settings.models) and "left out" in gpu_train.table(result)


def test_without_a_gpu_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="--smoke"):
        gpu_train.main(["--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
