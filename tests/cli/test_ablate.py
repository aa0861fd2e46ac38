"""A grid from one line: killed and resumed, a table and a figure, one sentence for each mistake."""

import csv
import signal
import statistics

import pytest

from cli.main import main
from ml.ablation import Cell, Result, finished_run, make_cells, read_grid, rows_of, spread, write_tables
from ml.ablation_figure import ablation_figure
from ml.logs import read_losses, read_steps
from ml.presets import preset

SMALL = ("image_size=32", "epochs=1", "warmup_epochs=0", "num_epochs_per_save=1")  # 6 steps


def line(clips, root, *grid):
    return [
        "ablate", "--data", clips, "--root", root, "--preset", "smoke", "--device", "cpu", "--grid", *grid, *SMALL
    ]  # fmt: skip


def table(path):
    with open(path) as file:
        return list(csv.DictReader(file))


def test_a_grid_that_is_killed_and_stopped_goes_on_with_the_same_line(trainer, clips, tmp_path):
    """Killed in the second run, stopped with Ctrl-C in the third, then left alone; once more there is nothing to do."""
    root = tmp_path / "grid"
    words = line(clips, root, "decoder_kind=cross-self,cross", "seed=0,1")
    codes, _ = trainer.run(words, root=root, group=True, signal=int(signal.SIGKILL), after=9)
    assert codes == [-signal.SIGKILL]
    first, second = sorted((root / "losses").glob("*.jsonl"), key=lambda path: path.stat().st_mtime)
    unfinished = len(read_steps(second))
    assert len(read_steps(first)) == 7 and 1 <= unfinished < 6  # the epoch has a line of its own
    written = first.stat().st_mtime_ns
    codes, said = trainer.run(words, root=root, group=True, signal=int(signal.SIGINT), after=7 + 7 + 2)
    assert codes == [130] and "4 runs, 1 of them finished" in said and "decoder_kind cross, seed 0: stopped" in said
    assert [row["n"] for row in table(root / "ablation.csv")] == ["2", "0"]
    codes, said = trainer.run(words, root=root)
    assert codes == [0] and "4 runs, 2 of them finished" in said, said
    logs = sorted((root / "losses").glob("*.jsonl"))
    assert len(logs) == 4 and first.stat().st_mtime_ns == written  # none was begun twice
    for log in logs:
        assert [step["step"] for step in read_steps(log) if "loss" in step] == [1, 2, 3, 4, 5, 6]
    assert "going on with" in "".join(path.read_text() for path in (root / "ablation").glob("*.txt"))

    runs = table(root / "ablation_runs.csv")
    assert [(row["decoder_kind"], row["seed"]) for row in runs] == [
        ("cross-self", "0"), ("cross-self", "1"), ("cross", "0"), ("cross", "1")
    ]  # fmt: skip
    losses = [read_losses(root / "losses" / f"{row['run']}.txt")[-1].mean for row in runs]
    assert len(set(losses)) == 4 and [float(row["train"]) for row in runs] == losses
    for row, pair in zip(table(root / "ablation.csv"), (losses[:2], losses[2:]), strict=True):
        assert row["n"] == "2" and float(row["train_mean"]) == pytest.approx(sum(pair) / 2)
        assert float(row["train_sd"]) == pytest.approx(abs(pair[0] - pair[1]) / 2**0.5)
    markdown = (root / "ablation.md").read_text()
    assert (
        "| decoder_kind | n | training loss |" in markdown and f"| cross | 2 | {sum(losses[2:]) / 2:.4f} ±" in markdown
    )
    assert (root / "ablation.png").read_bytes().startswith(b"\x89PNG")

    pictures = (root / "ablation.png").stat().st_mtime_ns
    codes, said = trainer.run(words, root=root)
    assert codes == [0] and "4 runs, 4 of them finished" in said and "seed 1: loss" not in said
    assert (root / "ablation.png").stat().st_mtime_ns > pictures


def test_a_run_that_fails_ends_alone_and_is_said(trainer, clips, tmp_path):
    """Two at a time, with held-out videos: 36 pixels do not divide into patches of 8."""
    root, held_out = tmp_path / "grid", tmp_path / "held_out"
    held_out.mkdir()
    (held_out / "one.mp4").write_bytes((clips / "family0_0.mp4").read_bytes())
    words = ["ablate", "--data", clips, "--test-data", held_out, "--root", root, "--preset", "smoke", "--jobs", "2"]
    codes, said = trainer.run([*words, "--device", "cpu", "--grid", "image_size=36,32", *SMALL[1:]], root=root)
    assert codes == [2] and "1 of 2 runs did not finish (image_size 36: ended with code 2: siammae train: " in said
    broken, whole = table(root / "ablation.csv")
    assert broken["n"] == "0" and "ended with code 2" in broken["notes"] and not broken["train_mean"]
    assert whole["n"] == "1" and float(whole["train_mean"]) > 0 and not whole["train_sd"]
    (log,) = (root / "test_losses").glob("*.txt")
    assert float(whole["validation_mean"]) == read_losses(log)[-1].mean
    assert "are different tasks" in (root / "ablation.md").read_text()


@pytest.mark.slow
def test_a_grid_in_programs_of_their_own(clips, tmp_path, capsys):
    """As people run it: each cell a program that begins with nothing."""
    words = line(clips, tmp_path, "mask_ratio=0.5,0.95", "seed=0,1")
    assert main([str(word) for word in words]) == 0
    assert "mask_ratio 0.95, seed 1: loss" in capsys.readouterr().out
    rows = table(tmp_path / "ablation.csv")
    assert [row["n"] for row in rows] == ["2", "2"] and all(float(row["train_sd"]) > 0 for row in rows)


@pytest.mark.parametrize(
    ("grid", "sentence"),
    [
        (["mask=0.5"], "'mask' is no field of RunConfig; there are model, mask_ratio"),
        (["mask_ratio"], "'mask_ratio' is no part of a grid"),
        (["mask_ratio=high"], "mask_ratio is 'high' in the grid; expected a number"),
        (["mask_ratio=nan"], "mask_ratio is 'nan' in the grid; expected a number"),
        (["max_gap=12.5"], "max_gap is '12.5' in the grid; expected a whole number"),
        (["decoder_kind=self"], "decoder_kind is 'self' in the grid; there are cross-self, cross, joint"),
        (["compile=yes"], "compile is 'yes' in the grid; expected true or false"),
        (["model=vit"], "model 'vit' is unknown; there are"),
        (["seed=0,1,0"], "'seed=0,1,0' names a value twice"),
        (["seed=0", "seed=1"], "seed stands twice in the grid"),
        (["min_gap=4,50"], "the cell with min_gap 50 is refused: max_gap 48 is smaller than min_gap 50"),
        (["mask_ratio=0.5,1.5"], "the cell with mask_ratio 1.5 is refused"),
        (["pairs_per_device=4,12", "batch_size=40"], "the cell with pairs_per_device 12, batch_size 40 is refused"),
    ],
)  # fmt: skip
def test_mistakes_are_said_before_anything_starts(grid, sentence, clips, tmp_path, capsys):
    root = tmp_path / "root"
    words = ["ablate", "--data", str(clips), "--root", str(root), "--preset", "smoke", "--grid", *grid]
    assert main(words) == 2
    assert sentence in capsys.readouterr().err and not root.exists()


def test_a_table_of_another_grid_is_not_overwritten(clips, tmp_path, capsys):
    (tmp_path / "ablation.md").write_text("my notes")
    words = ["ablate", "--data", str(clips), "--root", str(tmp_path), "--grid", "seed=0"]
    assert main(words) == 2 and "ablation.md is there already" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["ablation.md"]


def test_cells_are_named_by_what_decides_them():
    """The same cell has the same name in a larger grid; other data, another value or another epoch is another cell."""
    base = preset("smoke").config
    few = make_cells(base, read_grid(["mask-ratio=0.5", "seed=1,2"]), ["videos"])
    many = make_cells(base, read_grid(["rotation=0,10", "seed=0,1,2", "mask_ratio=0.5,0.95", "workers=2"]), ["videos"])
    assert len(many) == 12 and {cell.prefix for cell in few} < {cell.prefix for cell in many}
    assert len({cell.prefix for cell in many}) == 12 and few[0].prefix.startswith("mask_ratio-0.5_seed-1_")
    assert many[0].config.data.rotation == 0.0 and many[0].config.run.workers == 2
    others = make_cells(base, read_grid(["mask_ratio=0.5", "seed=1,2"]), ["other videos"])
    others += make_cells(base, read_grid(["mask_ratio=0.5", "seed=1,2", "epochs=3"]), ["videos"])
    assert not {cell.prefix for cell in few} & {cell.prefix for cell in others}


def test_only_a_run_at_its_last_epoch_is_finished(tmp_path):
    base = preset("smoke").config  # 2 epochs
    cell, longer = make_cells(base, read_grid(["seed=1,11"]))
    run = f"{cell.prefix}2030-01-01_00-00-00"
    folder = tmp_path / "checkpoints" / run
    folder.mkdir(parents=True)
    (tmp_path / "losses").mkdir()
    (tmp_path / "losses" / f"{run}.txt").write_text("Epoch 1 - Avg Loss: 0.5 Losses - [0.5]\n")
    (folder / "1.pt").touch()
    assert finished_run(cell, tmp_path) is None
    (folder / "2.pt").touch()
    assert finished_run(cell, tmp_path) == run and finished_run(longer, tmp_path) is None


def made_up(grid, seconds=True):
    """Results whose losses follow a formula, the last one missing."""
    cells = make_cells(preset("smoke").config, grid)
    results = [Result(c, f"run{k}", 1 + 0.1 * k, 2 + 0.1 * k if seconds else None) for k, c in enumerate(cells)]
    return [*results[:-1], Result(cells[-1], note="ended by SIGKILL | no more")]


def test_means_and_spreads_over_seeds(tmp_path):
    grid = read_grid(["max_gap=12,48", "seed=3,4,5", "epochs=2"])
    results = made_up(grid)
    first, second = rows_of(results[::-1], grid)[::-1]  # in whatever order they come
    assert (first.settings, first.finished, second.finished) == ({"max_gap": 12}, 3, 2)
    mean, deviation = spread(second.losses["validation"])
    assert mean == pytest.approx(2.35) and deviation == pytest.approx(statistics.stdev([2.3, 2.4]))
    assert second.notes == ["seed 5: ended by SIGKILL | no more"]
    assert spread([0.5]) == (0.5, None) and spread([]) == (None, None)
    write_tables(results, grid, "made up", tmp_path / "t")
    text = (tmp_path / "t.md").read_text()
    assert "| 12 | 3 | 1.1000 ± 0.1000 | 2.1000 ± 0.1000 |  |" in text
    assert "| 48 | 2 | 1.3500 ± 0.0707 | 2.3500 ± 0.0707 | seed 5: ended by SIGKILL \\| no more |" in text


def test_the_figure_shows_every_cell():
    grid = read_grid(["mask_ratio=0.5,0.95", "decoder_kind=cross,joint", "rotation=0,10,20", "seed=0,1"])
    figure = ablation_figure(made_up(grid), grid, heading="made up")
    axes = figure.axes
    assert len(axes) == 6 and {axis.get_ylabel() for axis in axes} == {"training loss", "validation loss", ""}
    assert [axis.get_title() for axis in axes[:3]] == ["rotation 0.0", "rotation 10.0", "rotation 20.0"]
    assert [label.get_text() for label in axes[3].get_xticklabels()] == ["0.5", "0.95"]
    bars = [container for axis in axes for container in axis.containers]
    heights = [height for bar in bars[:6] for height in bar.lines[0].get_ydata()]
    assert len(heights) == 12 and heights[0] == pytest.approx(1.05)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["cross", "joint"]
    assert isinstance(made_up(grid)[0].cell, Cell)
