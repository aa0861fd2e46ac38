"""The study: every arm is a run that can be made, what its table and verdicts say, and the page that is written."""

import json
import statistics
from pathlib import Path

import pytest

from cli.main import main
from cli.train import try_out
from common.errors import InputError
from ml.ablation import spread
from ml.study import ARMS, BASE, MEASURES, Spread, base_config, gather, make_cell, verdict
from ml.study_report import report, study_figure
from tests.slowly import slowly

BASES = base_config("micro", 3)
COMMITTED = Path(__file__).parents[2] / "docs" / "report.json"


def run_of(arm, seed, error, followed, hits=0.1):
    row = {"model": error, "copy": 0.45, "mean": 0.995, "copy × factor": 0.4}
    video = {ratio: {part: row for part in ("all", "short", "long")} for ratio in ("0.5", "0.75", "0.95")}
    motion = {"shift 8": {"model": 1.0, "copy": 1.5, "copy × factor": 0.9, "mean": 0.99, "exact hits": hits}}
    scores = {"video": video, "motion": motion, "J&F": followed, "d_avg": 16.0, "minutes": 2.0, "scoring minutes": 1.0}
    config = BASES.flat()
    return {"arm": arm, "seed": seed, "run": "r", "steps": 612, "config": config, "scores": scores}


@pytest.fixture(scope="module")
def halves(clips, tmp_path_factory):
    """`--data` and `--held-out`: four of the clips, and the other two."""
    root = tmp_path_factory.mktemp("halves")
    for number, path in enumerate(sorted(clips.iterdir())):
        folder = root / ("data" if number < 4 else "held")
        folder.mkdir(exist_ok=True)
        (folder / path.name).symlink_to(path)
    return ["--data", str(root / "data"), "--held-out", str(root / "held")]


RUNS = [run_of(BASE, seed, 0.5 + 0.01 * seed, 46.0 + seed) for seed in range(3)]
RUNS += [run_of("mask 75 %", seed, 0.45, 40.0 + seed) for seed in range(3)]
RUNS += [run_of("cross", seed, 0.515, 46.5 + seed) for seed in range(2)]


def shape_of(config):
    """All that a forward pass depends on."""
    return config.model_arguments, config.data.frames


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_is_a_run_that_differs_in_what_it_says(arm):
    cell = make_cell(BASES, arm, 1, "videos")
    if arm == BASE or shape_of(cell.config) != shape_of(BASES):
        try_out(cell.config)
    cell.config.shares(1)
    other = {name for name, value in cell.config.flat().items() if value != BASES.flat()[name]}
    asked = set(ARMS[arm].changes) | {"seed"} | ({"num_epochs_per_save"} if "epochs" in ARMS[arm].changes else set())
    assert other == asked


def test_no_two_cells_share_a_run():
    prefixes = {make_cell(BASES, arm, seed, about).prefix for arm in ARMS for seed in (0, 1) for about in ("a", "b")}
    assert len(prefixes) == 4 * len(ARMS)
    with pytest.raises(InputError, match="arm 'other' is unknown; there are untrained"):
        make_cell(BASES, "other", 0, "a")


def test_mean_and_spread_over_seeds():
    table = gather(RUNS)
    assert list(table) == [BASE, "mask 75 %", "cross"]  # the order of ARMS
    found = table[BASE]["J&F"]
    assert spread(found.values) == (47.0, statistics.stdev([46, 47, 48])) == (47.0, 1.0)
    assert found.text(1) == "47.0 ± 1.0" and Spread((2.0,)).text(1) == "2.0"


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ((3, 4), (1, 2), "yes"),
        ((1, 2), (3, 4), "no"),
        ((1, 3), (2, 4), "not told apart"),
        ((2, 2), (2, 2), "not told apart"),
        ((9,), (1, 2), "not told apart"),  # one seed's difference is no result
    ],
)
def test_an_order_holds_only_where_no_seed_reaches_into_the_others(first, second, said):
    assert verdict(Spread(first), Spread(second), MEASURES["J&F"]) == said
    less = {"yes": "no", "no": "yes"}.get(said, said)
    assert verdict(Spread(first), Spread(second), MEASURES["error 75"]) == less


def test_the_page_says_what_was_found_and_what_is_missing():
    page = report({"runs": RUNS, "planned": 30, "hours": 0.4, "videos": 7}, "r.png")
    assert "8 of 30 runs (seeds 0, 1, 2), 0.4 core-hours" in page and "612 steps" in page and "7 short videos" in page
    assert "| base *(the paper's recipe in small)* | 3 | 0.510 ± 0.010 |" in page
    assert "| 95 % hidden before 75 % (ablation of the mask ratio) | 47.0 ± 1.0 | 41.0 ± 1.0 | seen |" in page
    assert (
        "| cross-self before cross attention (ablation of the decoder) | 47.0 ± 1.0 | 47.0 ± 0.7 | not told apart |"
        in page
    )
    assert "- J&F: told apart from the base as better: none; as worse: mask 75 %." in page
    assert "- error, 75 % hidden: told apart from the base as better: mask 75 %; as worse: none." in page
    assert "copy 0.450, copy × factor 0.400, mean 0.995" in page
    assert "Not run, for lack of time: untrained, " in page and "{" not in page
    labels = [label.get_text() for label in study_figure(RUNS).axes[0].get_yticklabels()]
    assert labels == [BASE, "mask 75 %", "cross"]


@pytest.mark.skipif(not COMMITTED.is_file(), reason="no study is committed")
def test_the_committed_report_is_what_its_results_say(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["study", "--results", str(COMMITTED), "--report", "report.md"])
    assert Path("report.md").read_text(encoding="utf-8") == COMMITTED.with_suffix(".md").read_text(encoding="utf-8")


@pytest.mark.parametrize("arms", [["untrained"], *slowly(["untrained", "cross"])])
def test_small_runs_end_to_end_and_again(arms, halves, tmp_path, monkeypatch, capsys):
    """In this process; the second call finds all and runs nothing."""
    import cli.study
    import ml.jobs

    def here(jobs, environments, stop, *, keep_open, enough):
        for k, job in enumerate(jobs):
            yield k, main(list(job.command[3:])), 1.0
            if enough():
                return

    monkeypatch.setattr(ml.jobs, "run_jobs", here)
    monkeypatch.setattr(cli.study, "followed", lambda model, davis: {"d_avg": 20.0})
    words = ["study", *halves, "--epochs", "1", "--out", str(tmp_path / "study"), "--arms", *arms]
    words += ["--seeds", "0"]
    main(words)
    study = json.loads((tmp_path / "study" / "report.json").read_text())
    assert [run["arm"] for run in study["runs"]] == arms
    scores = [run["scores"] for run in study["runs"]]
    assert len({score["video"]["0.75"]["all"]["copy"] for score in scores}) == 1
    assert all((run["steps"] > 0) == (run["arm"] == "cross") for run in study["runs"])
    assert all(score["motion"]["shift 8"]["exact hits"] >= 0 for score in scores)
    assert (
        f"{len(arms)} of {len(arms)} runs" in capsys.readouterr().out and (tmp_path / "study" / "report.png").is_file()
    )
    main(words)
    assert "0 runs left" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--hours", "0"], "hours is 0.0; expected more than 0"),
        (["--cell", "base"], "cell is 'base'; expected an arm and a seed, such as base/0"),
        (["--results", __file__], "holds no results of a study: expected the .json beside a report"),
        (["--arms", "bass"], "arm 'bass' is unknown; there are untrained"),
    ],
)
def test_mistakes_are_one_sentence(words, said, halves, tmp_path, capsys):
    assert main(["study", *halves, "--out", str(tmp_path), *words]) == 2 and said in capsys.readouterr().err
