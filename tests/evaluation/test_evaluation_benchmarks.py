"""The benchmarks of evaluation run, in smoke size, and their two ways agree; their figures say nothing here."""

import json
from dataclasses import replace

import pytest
import torch

from benchmarks import evaluation_speed, gpu_eval, plain_evaluation
from common.errors import InputError
from evaluation.propagation import Context, propagate_step
from evaluation.protocols import protocol

DAVIS = ["--sequence", "ant", "--frames", "5"]


@pytest.mark.parametrize(("context", "radius", "top_k"), [(1, 1, 2), (3, 2, 5), (2, 12, 7)])
def test_weights_equal_the_plain_ones(context, radius, top_k):
    """All weights of all sources, on a small grid; raises where they differ."""
    frames = torch.randn(context + 2, 6, 5, 16, generator=torch.Generator().manual_seed(context))
    rules = protocol("dino", context=context, radius=radius, top_k=top_k)
    mask = plain_evaluation.neighbourhood(6, 5, radius)
    found = evaluation_speed.compare_weights(frames, mask, rules, chunk=17)
    assert found["weights differ"] <= 1e-6 and found["undecided targets"] == 0 and found["targets"] == 30
    wrong = plain_evaluation.neighbourhood(6, 5, 2 if radius == 1 else 1)
    with pytest.raises(AssertionError, match="the two ways' weights differ by"):
        evaluation_speed.compare_weights(frames, wrong, rules)


def test_a_tie_for_the_last_place_is_counted_and_left_out():
    frames = torch.randn(3, 6, 5, 16, generator=torch.Generator().manual_seed(0))
    frames[1] = frames[0]  # each similarity comes twice: the 3rd and the 4th are the same
    rules = protocol("dino", context=1, radius=12, top_k=3)
    found = evaluation_speed.compare_weights(frames, plain_evaluation.neighbourhood(6, 5, 12), rules)
    assert found["undecided targets"] == 30


def test_weights_of_the_plain_way_sum_to_1_within_its_radius():
    frames = torch.nn.functional.normalize(torch.randn(2, 6, 5, 16), dim=-1)
    labels = torch.eye(30).view(6, 5, 30)
    rules = protocol("dino", context=1, radius=1)
    for found in (
        plain_evaluation.dino_step(frames[1], [frames[0]], [labels], plain_evaluation.neighbourhood(6, 5, 1)),
        propagate_step(frames[1], Context(frames[:1], labels[None], near=1, far=0), rules),
    ):
        torch.testing.assert_close(found.sum(-1), torch.ones(6, 5))
        assert found[0, 0].view(6, 5)[2:].eq(0).all() and found[0, 0].view(6, 5)[:, 2:].eq(0).all()


def test_every_row_is_there(small_davis, tmp_path):
    out = tmp_path / "speed.json"
    evaluation_speed.main(["--smoke", "--data", str(small_davis), *DAVIS, "--out", str(out)])
    result = json.loads(out.read_text())
    assert evaluation_speed.DEMANDS.keys() < result["rows"].keys() and "left_out" not in result
    for row in result["rows"].values():
        assert row["plain"] > 0 and row["here"] > 0 and 0 < row["low"] <= row["ratio"] <= row["high"]
    agreement = result["agreement"]
    assert agreement["frames"] == 5 and agreement["pixels differ"] <= 1e-5 and agreement["J&F differs"] < 0.01
    assert agreement["features differ"] < 1e-4 and agreement["weights differ"] < 1e-6
    text = evaluation_speed.table(result)
    assert all(name in text for name in result["rows"]) and "asked ≥ 1.8" in text


def test_without_the_real_sequence_it_says_so(tmp_path, capsys):
    tiny = replace(evaluation_speed.SMOKE, repeats=1, scored=3)
    for data, reason in ((None, "give DAVIS's folder with --data"), (tmp_path / "no", "does not exist")):
        result = evaluation_speed.measure(tiny, data)
        assert "end to end" not in result["rows"] and reason in evaluation_speed.table(result)


def test_a_sequence_that_is_not_there(small_davis):
    with pytest.raises(InputError, match="there is no video called car-shadow"):
        evaluation_speed.whole(evaluation_speed.SMOKE, small_davis)


def test_a_missed_demand_is_called_missed():
    row = {"plain": 1.0, "here": 0.5, "ratio": 2.0, "low": 1.9, "high": 2.1, "at_least": 5.0}
    result = {"settings": {"size": (96, 144), "width": 48}, "torch": "", "load": 0, "agreement": {}}
    assert "asked ≥ 5.0: MISSED" in evaluation_speed.table({**result, "rows": {"x": row}})
    assert "MISSED" not in evaluation_speed.table({**result, "rows": {"x": {**row, "ratio": 5.0}}})


def test_what_the_gpu_script_measures(small_davis, tmp_path):
    gpu_eval.main(["--smoke", "--data", str(small_davis), "--source", "pixels", "--out", str(tmp_path / "out")])
    result = json.loads((tmp_path / "out" / "gpu_eval.json").read_text())
    (rows,) = result["models"].values()
    assert {row["stage"] for row in rows} == set(gpu_eval.STAGES) and all(row["seconds"] > 0 for row in rows)
    assert all(row["share"] > 0 for row in rows if row["stage"] != gpu_eval.STAGES[0])
    if result["device"].startswith("CPU"):
        assert result["whole"]["rows"].keys() == {"float32"}
    row = result["whole"]["rows"]["float32"]
    assert row["frames"] == 4 + 4 + 4 and 0 < row["J&F"] <= 100
    text = (tmp_path / "out" / "gpu_eval.txt").read_text()
    assert "of the roofline" in text and "frames/s" in text and "left out" not in text


def test_the_least_arithmetic_is_that_of_the_pairs_that_take_part():
    settings = replace(gpu_eval.SMOKE, size=(96, 80), context=4, radius=2.3)  # 6×5 patches
    places = [(y, x) for y in range(6) for x in range(5)]
    near = sum((y - v) ** 2 + (x - u) ** 2 < 2.3**2 for y, x in places for v, u in places)
    assert gpu_eval.pairs(settings) == 30 * 30 + 4 * near
    flops, _ = gpu_eval.needs(settings, "tiny/16", gpu_eval.STAGES[2], 4)
    assert flops == 2 * 48 * gpu_eval.pairs(settings)


def test_the_arithmetic_of_features_is_what_is_counted():
    from torch.utils.flop_counter import FlopCounterMode

    settings, model = gpu_eval.SMOKE, gpu_eval.build("tiny/16")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        plain_evaluation.explicit_encode(model, torch.zeros(1, 3, *settings.size, dtype=torch.uint8))
    assert gpu_eval.needs(settings, "tiny/16", "features", 4)[0] == pytest.approx(counter.get_total_flops(), rel=1e-3)


def test_without_time_it_says_what_it_left_out(small_davis):
    settings = replace(gpu_eval.SMOKE, budget=-1)
    result = gpu_eval.measure(settings, torch.device("cpu"), small_davis, "pixels")
    assert result["left_out"] == ["tiny/16", "the sequences of DAVIS"] and "left out" in gpu_eval.table(result)


def test_16_bits_that_differ_too_much_are_called_missed():
    row = {"J&F": 50.0, "seconds": 1.0, "frames": 5, "frames_a_second": 5.0, "lines": []}
    whole = {"source": "x", "protocol": "paper", "rows": {"float32": row}, "points between formats": 0.2}
    result = {"device": "", "torch": "", "total": 1, "rates": {"bytes": 1e9}, "models": {}, "left_out": []}
    result["settings"] = {"size": (480, 880), "context": 20}
    assert "MISSED" in gpu_eval.table({**result, "whole": whole})
    assert "MISSED" not in gpu_eval.table({**result, "whole": {**whole, "points between formats": 0.1}})


def test_without_a_gpu_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="--smoke"):
        gpu_eval.main(["--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
