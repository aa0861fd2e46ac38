"""The benchmarks of evaluation run, in smoke size, and their two ways agree; their figures say nothing here."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import evaluation_speed, gpu_eval, plain_evaluation
from cli.feature_sources import open_source
from common.errors import InputError
from evaluation.benchmarks.davis import Davis
from evaluation.propagation import Context, propagate_step
from evaluation.protocols import protocol
from evaluation.run import evaluate

ROOT = Path(__file__).parents[2]
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


@pytest.mark.slow
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
    stages, whole = ([row for row in result["rows"] if key in row] for key in ("stage", "data"))
    assert [*dict.fromkeys(row["stage"] for row in stages)] == [*gpu_eval.STAGES]
    assert all(row["seconds"] > 0 for row in stages)
    assert all(row["share"] > 0 for row in stages if row["stage"] not in gpu_eval.HOST)
    if result["device"].startswith("CPU"):
        assert [(row["data"], row["format"]) for row in whole] == [("DAVIS 2016", "float32"), ("DAVIS 2017", "float32")]
    assert all(row["frames"] == 4 + 4 + 4 and 0 < row["points"] <= 100 and len(row["each"]) == 3 for row in whole)
    text = (tmp_path / "out" / "gpu_eval.txt").read_text()
    assert "of the roofline" in text and "frames/s" in text and "left out" not in text
    with Image.open(tmp_path / "out" / "gpu_eval.png") as picture:
        assert picture.width > 500


def test_masks_that_do_not_fit_a_year_take_nothing_else_with_them(small_davis, tmp_path):
    """Masks of 0 and 255, as DAVIS 2016 has them, mark nothing but void in 2017."""
    data = shutil.copytree(small_davis, tmp_path / "masks of 2016")
    for path in data.glob("Annotations/480p/*/*.png"):
        mask = np.asarray(Image.open(path)) > 0
        Image.fromarray(mask.astype(np.uint8) * 255).save(path)
    run = gpu_eval.start(gpu_eval.SMOKE, torch.device("cpu"), tmp_path / "gpu_eval.json")
    gpu_eval.measure_whole(run, gpu_eval.SMOKE, data, "pixels")
    assert [row["data"] for row in run.result["rows"]] == ["DAVIS 2016"]
    (left_out,) = run.result["left_out"]
    assert left_out.startswith("DAVIS 2017: ") and "marks nothing to follow" in left_out


def test_without_data_the_gpu_script_makes_sequences(tmp_path):
    root = gpu_eval.synthetic_davis(tmp_path, replace(gpu_eval.SMOKE, frames=3), sequences=2)
    for year in (2016, 2017):
        videos = list(gpu_eval.Davis(root, year).videos())
        assert [len(video) for video in videos] == [3, 3] and all(video.first.any() for video in videos)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_half_precision_costs_no_tenth_of_a_point(tmp_path):
    davis = Davis(gpu_eval.synthetic_davis(tmp_path, gpu_eval.Settings()))
    rules = davis.protocol("dino", size="short240")
    found = [
        100 * evaluate(davis, open_source("siammae_micro", ROOT, "cuda", half), rules, batch=8).row["J&F-Mean"]
        for half in (False, True)
    ]
    assert abs(found[0] - found[1]) <= gpu_eval.MOST_POINTS


class Clock:
    """Each look at it costs a while; after so many it fails, as a kill does."""

    def __init__(self, cost=0.0, looks=10**9):
        self.now, self.cost, self.looks = 0.0, cost, looks

    def __call__(self):
        self.now, self.looks = self.now + self.cost, self.looks - 1
        if self.looks < 0:
            raise KeyboardInterrupt
        return self.now


@pytest.mark.parametrize("cost", [0.05, 1.0, 4.0])
def test_the_gpu_script_ends_in_time_however_slow_all_is(cost, small_davis, tmp_path):
    """The fake clock makes each call of anything so slow."""
    clock, settings = Clock(cost), replace(gpu_eval.Settings(), models=("tiny/16",), size=(96, 144), context=2,
                                           product=16, copy=16, frames=3)  # fmt: skip
    file = tmp_path / "gpu_eval.json"
    run = gpu_eval.start(settings, torch.device("cpu"), file, clock=clock)
    result = gpu_eval.measure(run, settings, small_davis, "pixels")
    assert clock.now - run.begin < settings.budget + 8 * cost
    assert settings.budget <= 180  # the two scripts of the first GPU hour have eight minutes together
    assert json.loads(file.read_text()) == json.loads(json.dumps(result))
    whole = cost < 4
    assert (len(result["rows"]) == len(gpu_eval.HOST) + 4 + 2) == whole and (result["left_out"] == []) == whole


def test_killed_midway_the_file_holds_the_rows_that_were_finished(small_davis, tmp_path):
    seen = []
    for looks in (60, 90):
        file = tmp_path / f"{looks}.json"
        clock = Clock(0.004, looks)
        run = gpu_eval.start(gpu_eval.SMOKE, torch.device("cpu"), file, clock=clock)
        with pytest.raises(KeyboardInterrupt):
            gpu_eval.measure(run, gpu_eval.SMOKE, small_davis, "pixels")
        rows = json.loads(file.read_text())["rows"]
        assert rows == run.result["rows"]
        seen.append([row["stage"] for row in rows])
    assert 0 < len(seen[0]) < len(seen[1]) and seen[1][: len(seen[0])] == seen[0]


def test_the_least_arithmetic_is_that_of_the_pairs_that_take_part():
    settings = replace(gpu_eval.SMOKE, size=(96, 80), context=4, radius=2.3)  # 6×5 patches
    places = [(y, x) for y in range(6) for x in range(5)]
    near = sum((y - v) ** 2 + (x - u) ** 2 < 2.3**2 for y, x in places for v, u in places)
    assert gpu_eval.pairs(settings) == 30 * 30 + 4 * near
    flops, _ = gpu_eval.needs(settings, "tiny/16", "affinity, labels", 4)
    assert flops == 2 * 48 * gpu_eval.pairs(settings)


def test_the_arithmetic_of_features_is_what_is_counted():
    from torch.utils.flop_counter import FlopCounterMode

    settings, model = gpu_eval.SMOKE, gpu_eval.build("tiny/16")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        plain_evaluation.explicit_encode(model, torch.zeros(1, 3, *settings.size, dtype=torch.uint8))
    assert gpu_eval.needs(settings, "tiny/16", "features", 4)[0] == pytest.approx(counter.get_total_flops(), rel=1e-3)


def test_16_bits_that_differ_too_much_are_called_missed():
    head = {"device": "", "torch": "", "protocol": "", "seconds": 1, "rates": {"bytes": 1e9}, "nominal": {}}
    row = {"data": "DAVIS 2016", "source": "x", "sequences": 2, "of": 3, "frames": 5, "seconds": 1, "points": 50.0,
           "frames_a_second": 5.0}  # fmt: skip
    exact = {**row, "format": "float32", "each": {"a": 40.0, "b": 60.0}}
    for other, verdict in (({"a": 40.3, "c": 0.0}, True), ({"a": 40.1, "b": 60.09}, False)):
        result = {**head, "left_out": [], "rows": [{**row, "format": "float16", "each": other}, exact]}
        assert ("MISSED" in gpu_eval.table(result)) == verdict
        assert "DAVIS 2016, float16 differs" in gpu_eval.table(result)


def test_without_a_gpu_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="--smoke"):
        gpu_eval.main(["--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
