"""siammae ablate --data VIDEOS --grid mask_ratio=0.5,0.75,0.95 decoder_kind=cross-self,cross seed=0,1"""

import sys
from contextlib import closing
from pathlib import Path

from common.errors import InputError


def main(
    data: Path,
    grid: tuple[str, ...],
    preset: str = "micro",
    test_data: Path | None = None,
    weights: Path | None = None,
    root: Path = Path("runs/ablation"),
    name: str = "ablation",
    device: str | None = None,
    jobs: int = 0,
) -> None:
    """Train every cell of a grid, and write a table with mean and spread over seeds, and a figure.

    The same command resumes where it was stopped or killed: what is finished is not run again.

    Args:
        data: folder of videos
        grid: fields of the configuration and their values, such as mask_ratio=0.5,0.95 max_gap=24,48 seed=0,1,2; the
            first field is the figure's axis, the second its colours; one value holds for all cells
        preset: where everything else comes from
        test_data: folder of held-out videos, for a validation loss
        weights: public MAE weights to start from
        root: folder for losses/, checkpoints/, the table and the figure
        name: name of the table and the figure; what each run says goes to a folder of this name
        device: cuda, mps, cpu; default: the best there is
        jobs: runs at once; 0: one on each GPU, or one at a time
    """
    from cli.flags import flags
    from dataset_loader import check_disjoint
    from dataset_loader.sources import open_source
    from ml.ablation import check_tables, describe, make_cells, read_grid, read_result, told_apart, write_tables
    from ml.ablation_figure import ablation_figure
    from ml.guards import StopSignals, leave
    from ml.jobs import Job, alone, exit_reason, places, run_jobs
    from ml.plots import save_figure
    from ml.presets import preset as preset_named

    axes = read_grid(grid)
    if jobs < 0 or name != Path(name).name:
        raise InputError(f"jobs is {jobs} and name {name!r}; expected at least 0, and a name without a folder")
    base = preset_named(preset).config
    videos = [[Path(path).name for path in open_source(folder).names] for folder in (data, test_data) if folder]
    if test_data:
        check_disjoint(data, test_data)
    cells = make_cells(base, axes, [videos, str(weights or "")])
    check_tables(root / name, axes)
    fixed = {field: values[0] for field, values in axes.items() if len(values) == 1}
    about = f"Preset {preset}" + (f" with {describe(fixed)}" if fixed else "") + f"; {len(videos[0])} videos"
    shared = dict(data=data, preset=preset, test_data=test_data, weights=weights, root=root, device=device)
    root.mkdir(parents=True, exist_ok=True)
    with StopSignals().watching() as stop, alone(root, stop) as held:
        results = [read_result(cell, root) for cell in cells]
        todo = [k for k, result in enumerate(results) if result.run is None]
        work = []
        for k in todo:
            line = ["train", *flags({**shared, **cells[k].settings, "prefix": cells[k].prefix})]
            work.append(Job([sys.executable, "-m", "cli.main", *line], root / name / f"{cells[k].prefix}.txt"))
        slots = places(device, jobs)
        counted = f"{len(cells)} runs, {len(cells) - len(todo)} of them finished"
        print(f"{counted}; {len(slots)} at a time, and what they say in {root / name}/", flush=True)
        write_tables(results, axes, about, root / name)
        with closing(run_jobs(work, slots, stop, keep_open=held)) as ended:
            for j, code, seconds in ended:
                note = "stopped" if stop.received else exit_reason(code, work[j].output)
                result = results[todo[j]] = read_result(cells[todo[j]], root, note)
                said = result.note if result.train is None else f"loss {result.train:.4f}"
                print(f"{told_apart(result.cell, axes)}: {said} ({seconds:.0f} s)", flush=True)
                write_tables(results, axes, about, root / name)
    figure = save_figure(ablation_figure(results, axes, heading=about), root / f"{name}.png")
    print(f"table: {root / name}.md and .csv, each run: {root / name}_runs.csv, figure: {figure}")
    if stop.received:
        leave(stop.received)
    failed = [result for result in results if result.run is None]
    if failed:
        first = f"{told_apart(failed[0].cell, axes)}: {failed[0].note}"
        raise InputError(f"{len(failed)} of {len(cells)} runs did not finish ({first}); the same line tries them again")
