"""The benchmarks of training run, in smoke size, and say what they should; their figures say nothing here."""

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_train, loader_thread, reckoning, training_speed
from benchmarks.counting import attention_forward, count, flops_a_pair, least_products, noise_batch
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


@pytest.mark.filterwarnings("ignore")  # of the compiler, the profiler and FSDP, about what this machine lacks
@pytest.mark.slow
@pytest.mark.parametrize("whole", [False, True])
def test_what_the_gpu_script_measures(whole, tmp_path, capfd):
    """whole: as the command does it; else one job of each kind, with nothing compiled."""
    (name,) = gpu_train.SMOKE.models
    ways = ("eager", "compiled", "ddp", "fsdp", "futures=2", "checkpointing", "decoder in float32")
    if whole:
        gpu_train.main(["--smoke", "--out", str(tmp_path), "--workers", "0"])
        assert (tmp_path / "gpu_train.png").stat().st_size > 5000
    else:
        run, ways = gpu_train.Run(gpu_train.SMOKE, torch.device("cpu"), tmp_path, workers=0), ("eager",)
        chosen = ("matrix product", "attention", "loader alone", "eager, batch 2")
        run.go([job for job in run.jobs() if job.what.endswith(chosen)])
    result = json.loads((tmp_path / "gpu_train.json").read_text())
    assert not [row for row in result["rows"] if "failed" in row] and not result["left_out"]
    rows = {(row["what"], row.get("batch")): row for row in result["rows"]}
    rate = rows["matrix product", None]["tflops"] * 1e12
    flops = flops_a_pair(build_model(name, mask_ratio=0.95))
    for way in ways:
        row = rows[f"{name}, {way}", 2]
        assert row["pairs_a_second"] == pytest.approx(2e3 / row["milliseconds"]) and row["share_of_nominal"] is None
        if way != "futures=2":
            assert row["share"] == pytest.approx(row["pairs_a_second"] * flops / rate)
    profile = rows[f"{name}, {ways[0]}, profile", 2]
    assert sum(profile["kinds"].values()) == pytest.approx(1) and profile["kinds"]["matrix products"] > 0.02
    assert len(rows[f"{name}, attention", None]["chosen"]) >= 2
    assert not whole or 0 < rows[f"{name}, compiled, from the loader", 4]["waiting"] < 1
    assert rows["loader alone", 4]["pairs_a_second"] > 0 and rows["loader alone", 4]["own_milliseconds"] > 0
    text = (tmp_path / "gpu_train.txt").read_text()
    assert all(what in text for what, _ in rows) and "of the matrix product (aim 45%)" in text


def test_its_flops_are_those_that_are_counted():
    model = build_model("siammae_micro_patch8", mask_ratio=0.95)
    for futures in (1, 2):
        counted = count(lambda f=futures: model(**noise_batch(model, 1, f))[0]).flops / futures
        assert flops_a_pair(model, futures) == pytest.approx(counted, rel=1e-3)
    assert least_products(model, 2, 64) == 2 * least_products(model, 1, 64)
    assert attention_forward(model, 2, 64)[0] == 2 * attention_forward(model, 1, 64)[0]


def fake_run(tmp_path, clock, budget=100.0):
    settings = replace(gpu_train.SMOKE, budget=budget)
    return gpu_train.Run(settings, torch.device("cpu"), tmp_path, clock=clock)


def test_the_file_holds_every_row_that_is_done_and_time_is_kept(tmp_path):
    """A clock that only jobs move: what would end too late is left out, a shorter one after it still runs."""
    now, seen = [0.0], []

    def job(what, takes, expected, error=None):
        def work():
            seen.append([row["what"] for row in json.loads((tmp_path / "gpu_train.json").read_text())["rows"]])
            now[0] += takes
            if error:
                raise error
            run.keep(what=what, milliseconds=1.0)

        return gpu_train.Job(what, expected, work)

    run = fake_run(tmp_path, lambda: now[0])
    run.go([job("a", 40, 30), job("b", 30, 50, ValueError("no\nreason")), job("c", 20, 40), job("d", 10, 20)])
    result = json.loads((tmp_path / "gpu_train.json").read_text())
    assert seen == [[], ["a"], ["a", "b"]] and result["left_out"] == ["c"] and now == [80]
    assert result["rows"][1] == {"what": "b", "failed": "ValueError: no"} and result["rows"][2]["what"] == "d"
    text = (tmp_path / "gpu_train.txt").read_text()
    assert "left out for lack of time: c" in text and "ValueError: no" in text
    now[0] = 0.0
    run = fake_run(tmp_path, lambda: now[0])
    with pytest.raises(KeyboardInterrupt):
        run.go([job("a", 1, 1), job("b", 1, 1, KeyboardInterrupt()), job("c", 1, 1)])
    assert [row["what"] for row in json.loads((tmp_path / "gpu_train.json").read_text())["rows"]] == ["a"]


def test_what_runs_for_too_long_is_ended(tmp_path):
    run = fake_run(tmp_path, lambda: 0.0, budget=0.3)
    jobs = [gpu_train.Job("endless", 0, lambda: time.sleep(100)), gpu_train.Job("c", 0, lambda: run.keep(what="c"))]
    run.go(jobs)
    result = json.loads((tmp_path / "gpu_train.json").read_text())
    assert result["left_out"] == ["endless", "c"] and result["rows"] == []


def test_jobs_that_may_take_long_come_last(tmp_path):
    run = gpu_train.Run(gpu_train.Settings(), torch.device("cpu"), tmp_path)
    run.device = torch.device("cuda", 0)
    jobs = run.jobs()
    assert jobs[0].what == "matrix product" and jobs[-1].what == "siammae_small_patch16, CUDA graphs, batch 256"
    names = " ".join(job.what for job in jobs)
    for part in ("ddp", "fsdp", "loader alone", *(f"{name}, compiled" for name in gpu_train.MODELS)):
        assert part in names
    surest = [job for job in jobs if "batch" not in job.what or "compiled, batch" in job.what][:10]
    assert sum(job.seconds for job in surest) < run.settings.budget < 480


def kernel(kind, reads, writes, flops=0.0):
    return reckoning.Kernel(kind, flops, 100.0, reads, writes)


def test_what_a_compiler_fuses():
    """x → a → b → product → c: a is never written; b is, for the product; c reads b and the product's result once."""
    kernels = [
        kernel("GELU", {0: 10}, {1: 10}), kernel("copies", {1: 10, 0: 10}, {2: 5}),
        kernel("matrix products", {2: 5}, {3: 7}, flops=400.0),
        kernel("layer norm", {3: 7, 2: 5}, {4: 7}), kernel("GELU", {4: 7, 3: 7}, {5: 7}),
    ]  # fmt: skip
    first, product, last = reckoning.fused(kernels)
    assert (first.reads, first.writes) == ({0: 10}, {2: 5}) and product is kernels[2]
    assert (last.reads, last.writes) == ({3: 7, 2: 5}, {4: 7, 5: 7}) or last.writes == {5: 7}
    times = reckoning.seconds_by_kind(kernels, parameters=0, bandwidth=10.0)
    assert times["matrix products"] == 4.0 and times["GELU"] == pytest.approx(2.0 + 2.1) and times["AdamW"] == 0


@pytest.mark.slow
def test_what_is_reckoned(tmp_path, capsys):
    gpu_train.main(["--reckon", "--smoke", "--out", str(tmp_path)])
    (row,) = json.loads((tmp_path / "gpu_reckoned.json").read_text())
    eager, compiled = row["eager, H100"], row["compiled, H100"]
    assert eager["kernels"] == row["kernels"] > compiled["kernels"] > 50
    assert eager["ms"] > compiled["ms"] >= row["compiled, H200"]["ms"]
    assert sum(eager["kinds"].values()) == pytest.approx(1) and 0 < eager["share of nominal"] < reckoning.PRODUCTS
    assert "| siammae_micro_patch8, 4 pairs |" in capsys.readouterr().out
    assert (tmp_path / "gpu_reckoned.png").stat().st_size > 5000


@pytest.mark.slow
def test_the_reckoned_table_of_the_documentation_is_what_the_command_says():
    text = (Path(__file__).parents[1] / "docs" / "results.md").read_text()
    assert reckoning.markdown(reckoning.reckon()) in text


@pytest.mark.slow
def test_what_a_batch_costs_the_training_thread(tmp_path, capsys):
    loader_thread.main(
        ["--pairs", "4", "--size", "32", "--batches", "3", "--workers", "1", "--out", str(tmp_path / "x")]
    )
    found = json.loads((tmp_path / "x").read_text())["ms"]
    assert found.keys() == {"training thread", "other threads", "the copy alone"} and found["training thread"] > 0
    assert "asked of the training thread: < 2 ms" in capsys.readouterr().out


def test_without_a_gpu_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="--smoke"):
        gpu_train.main(["--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
