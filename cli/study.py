"""siammae study --data VIDEOS --held-out VIDEOS [--davis DAVIS]: what is each choice of the recipe worth, in small?"""

import json
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import InputError
from common.files import write_text

if TYPE_CHECKING:
    from ml.ablation import Cell
    from ml.SiamMAE import Model

WEIGHTS = Path(__file__).parents[1] / "checkpoints" / "mae_micro.pth"
SHIFT = 8  # pixels


def main(
    data: Path | None = None,
    held_out: Path | None = None,
    davis: Path | None = None,
    out: Path = Path("runs/study"),
    report: Path | None = None,
    hours: float = 7.0,
    jobs: int | None = None,
    epochs: int = 3,
    preset: str = "micro",
    arms: tuple[str, ...] = (),
    seeds: tuple[int, ...] = (0, 1, 2),
    weights: Path = WEIGHTS,
    cell: str = "",
    results: Path | None = None,
) -> None:
    """Change one choice of a small run at a time, with three seeds each, and write what each is worth.

    The choices: mask ratio, decoder, encoder, pairing, gap, futures, a second frame, rotation, which patches are
    hidden, one frame (MAE) in place of two, and the weights to start from. Scores: error on held-out pairs beside
    copying, whether motion is found, DAVIS, points of the synthetic world, and time. The same line again goes on.

    Args:
        data: videos to learn from, in any form
        held_out: others, for the errors
        davis: DAVIS, for J&F of the first 10 frames of its sequences of 2016 (short side 240)
        out: folder of the runs, their scores, and the report
        report: Markdown file for the report; default: report.md in the folder. Its figures lie beside it
        hours: core-hours after which no further run begins, those of earlier calls included
        jobs: runs at once; default: one for each core
        epochs: epochs of a run, 4 visits to each video
        preset: the size of all runs
        arms: only these; default: all, the most telling ones first
        seeds: of each arm
        weights: where all runs but those from nothing start: an image MAE of the preset's size
        cell: run and score this one alone, such as base/0; for the processes of this command, and for clusters
        results: write the report of this file, which an earlier call left beside its report; nothing is run
    """
    from dataset_loader import check_disjoint
    from dataset_loader.sources import open_source
    from ml.guards import leave
    from ml.study import ARMS, base_config, make_cell, read_results, read_scores

    page = report or out / "report.md"
    if results is not None:
        return _write(read_results(results), page)
    if data is None or held_out is None:
        raise InputError("study takes --data VIDEOS and --held-out VIDEOS, or --results FILE of an earlier study")
    check_disjoint(data, held_out)
    names = [[Path(path).name for path in open_source(folder).names] for folder in (data, held_out)]
    base, about = base_config(preset, epochs), [names, weights.name]

    def made(arm: str, seed: int) -> "Cell":
        return make_cell(base, arm, seed, about)

    def scores_of(which: "Cell") -> Path:
        return out / "scores" / f"{which.prefix}.json"

    if cell:
        arm, _, seed = cell.rpartition("/")
        if not seed.isdecimal():
            raise InputError(f"cell is {cell!r}; expected an arm and a seed, such as base/0")
        return _run(made(arm, int(seed)), scores_of(made(arm, int(seed))), data, held_out, davis, out, weights)
    if not hours > 0:
        raise InputError(f"hours is {hours}; expected more than 0")
    cells = [made(arm, seed) for arm in arms or ARMS for seed in seeds]
    shared = dict(data=data, held_out=held_out, davis=davis, out=out, epochs=epochs, preset=preset, weights=weights)

    def done() -> list[dict[str, Any]]:
        return [scores for which in cells if (scores := read_scores(scores_of(which)))]

    left = [which for which in cells if not scores_of(which).is_file()]
    stop, failed = 0, ""
    if _core_hours(done()) < hours:
        stop, failed = _go_on(left, shared, out, jobs, lambda: _core_hours(done()) >= hours)
    runs = done()
    if runs:
        _write({"planned": len(cells), "hours": _core_hours(runs), "videos": len(names[0]), "runs": runs}, page)
    if stop:
        leave(stop)
    if failed:
        raise InputError(f"{failed}; the same line tries it again")


def _core_hours(runs: list[dict[str, Any]]) -> float:
    return sum((run["scores"]["minutes"] or 0) + run["scores"]["scoring minutes"] for run in runs) / 60


def _go_on(
    cells: list["Cell"], shared: dict[str, Any], out: Path, jobs: int | None, spent: Callable[[], bool]
) -> tuple[int, str]:
    """Run cells until the hours are spent: the number of the signal that ended it, or 0, and the last failure."""
    from cli.flags import flags
    from dataset_loader.preparing.jobs import processes
    from ml.guards import StopSignals
    from ml.jobs import Job, alone, exit_reason, run_jobs

    work = []
    for each in cells:
        name = f"{each.settings['arm']}/{each.settings['seed']}"
        line = ["study", *flags({**shared, "cell": name})]
        work.append(Job([sys.executable, "-m", "cli.main", *line], out / "said" / f"{each.prefix}.txt"))
    at_once = processes(jobs)
    out.mkdir(parents=True, exist_ok=True)
    enough, failed = False, ""
    with StopSignals().watching() as stop, alone(out, stop) as held:
        print(f"{len(cells)} runs left, {at_once} at a time; what they say lies in {out / 'said'}/", flush=True)
        one_core = [{"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}] * at_once
        with closing(run_jobs(work, one_core, stop, keep_open=held, enough=lambda: enough)) as ended:
            for k, code, seconds in ended:
                name, enough = f"{cells[k].settings['arm']}, seed {cells[k].settings['seed']}", spent()
                said = "done" if code == 0 else "stopped" if stop.received else exit_reason(code, work[k].output)
                failed = f"{name}: {said}" if code and not stop.received else failed
                print(f"{name}: {said} ({seconds / 60:.1f} min)", flush=True)
    return stop.received, failed


def _write(study: dict[str, Any], page: Path) -> None:
    """The report, and beside it its figure and the scores that it was made of."""
    from ml.plots import save_figure
    from ml.study_report import report, study_figure

    figure = save_figure(study_figure(study["runs"]), page.with_suffix(".png"))
    write_text(page.with_suffix(".json"), json.dumps(study, ensure_ascii=False) + "\n")
    write_text(page, report(study, figure.name))
    print(f"{len(study['runs'])} of {study['planned']} runs, {study['hours']:.1f} core-hours: {page}")


def _run(cell: "Cell", scores: Path, data: Path, held_out: Path, davis: Path | None, out: Path, weights: Path) -> None:
    """Train one cell, or find it trained, and score it."""
    import torch

    from cli.train import Arguments, Output, run
    from ml.checkpoints import find_checkpoint, load_model
    from ml.SiamMAE import build_model
    from ml.study import ARMS
    from ml.zoo import at_size

    config, arm, begun = cell.config, ARMS[cell.settings["arm"]], time.process_time()
    start = weights if arm.weights else None
    begun_before = any((out / "checkpoints").glob(f"{cell.prefix}*"))  # then its time was spent by another process
    name, steps = None, 0
    if arm.trained:
        output = Output(root=out, prefix=cell.prefix)
        name = run(Arguments(data, weights=start, resume="once", config=config, output=output, device="cpu"))
        model, record = load_model(find_checkpoint(name, out))
        steps = record["step"]
    else:
        torch.manual_seed(config.run.seed)
        model = build_model(config.model.model, weights=str(start) if start else None, **config.model_arguments)
    trained = time.process_time()
    model = at_size(model, config.data.image_size)  # the weights that it started from may be of another one
    found = score(model, held_out, davis, config.data.second)
    found["minutes"] = None if begun_before else (trained - begun) / 60
    found["scoring minutes"] = (time.process_time() - trained) / 60
    whole = {**cell.settings, "run": name, "steps": steps, "config": config.flat(), "scores": found}
    write_text(scores, json.dumps(whole, indent=1, ensure_ascii=False) + "\n")


def score(model: "Model", held_out: Path, davis: Path | None, second: str = "none") -> dict[str, Any]:
    """What every run is asked: pairs of held-out videos at three mask ratios, shifted windows (a model of two frames
    only), DAVIS, and points. second: the second frame that the model reads."""
    from cli.motion import frames
    from cli.wiring import fixed_dataset, fixed_loader
    from ml.config import RunConfig
    from ml.motion import SHIFTS, shifted_pairs
    from ml.reconstruction import compare_with_copying, masking
    from ml.zoo import RATIOS, motion_numbers, pixels_needed

    size = pixels_needed(model)
    config = RunConfig().replace(image_size=size, batch_size=32, second=second)
    batches = list(fixed_loader(config, fixed_dataset(config, held_out, visits=4)))
    video = {}
    for ratio in RATIOS:
        with masking(model, ratio):
            video[f"{ratio:g}"] = compare_with_copying(model, batches)
    motion = {}
    if second == "none":
        images = frames(held_out, size + 2 * max(SHIFTS), 64)
        motion = motion_numbers(model, [shifted_pairs(images, SHIFT, seed=SHIFT)])
    return {"video": video, "motion": motion, **followed(model, davis)}


def followed(model: "Model", davis: Path | None) -> dict[str, Any]:
    """J&F on DAVIS, if it is given, and δ_avg of points of the synthetic world, in percent."""
    import tempfile

    from cli.synthetic_scenes import write_scenes
    from dataset_loader.synthetic import synthetic_video
    from evaluation.benchmarks.davis import Davis
    from evaluation.features import model_source
    from evaluation.run import evaluate

    def quiet(line: str) -> None: ...

    source, found = model_source("this model", model), {}
    if davis is not None:
        benchmark = Davis(davis, year=2016)
        rules = benchmark.protocol("dino", size="short240")
        found["J&F"] = 100 * float(evaluate(benchmark, source, rules, frames=10, report=quiet).row["J&F-Mean"])
    scenes = [synthetic_video(seed, height=96, width=128, seconds=1.5, fps=8) for seed in (11, 12, 13, 14)]
    with tempfile.TemporaryDirectory() as folder:
        _, points = write_scenes(scenes, Path(folder))
        row = evaluate(points, source, points.protocol(size="256x256"), report=quiet).row
    return {**found, "d_avg": 100 * float(row["d_avg"])}
