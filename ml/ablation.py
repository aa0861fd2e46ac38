"""Ablations: a grid over fields of a preset, the cells it is made of, and what came out of them as a table.

A cell is one run. Its prefix follows from everything that decides its numbers, so the same line finds the same runs
again: those that are finished are read, the others go on.
"""

import csv
import hashlib
import io
import itertools
import json
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from common.errors import InputError
from common.files import write_atomically
from ml.config import RunConfig, field_types
from ml.logs import read_losses
from ml.runs import FREE
from ml.SiamMAE import MODELS

Grid = dict[str, tuple[Any, ...]]  # the values of each field, in the order in which they were given

MEASURES = {"train": "training loss", "validation": "validation loss"}

_ANOTHER_TASK = {"mask_ratio", "min_gap", "max_gap", "rotation", "image_size"}  # decide what is to be predicted


@dataclass(frozen=True)
class Cell:
    """One run of a grid: what the grid says of it, its whole configuration, and what its run's name begins with."""

    settings: dict[str, Any]
    config: RunConfig
    prefix: str


@dataclass(frozen=True)
class Result:
    """What came of a cell: its run's name and last losses, or None for what there is not; `note` says why."""

    cell: Cell
    run: str | None = None
    train: float | None = None
    validation: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Row:
    """The cells that differ in their seed alone: how many are finished, and their losses in the order of the grid."""

    settings: dict[str, Any]
    finished: int
    losses: dict[str, list[float]]  # by the names of MEASURES
    notes: list[str]


def describe(settings: Mapping[str, Any]) -> str:
    """Settings as a person reads them: `mask_ratio 0.5, seed 1`."""
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def told_apart(cell: Cell, grid: Grid) -> str:
    """What tells a cell from the others of its grid, seed included."""
    several = {name: value for name, value in cell.settings.items() if len(grid[name]) > 1}
    return describe(several or cell.settings)


def read_grid(words: Sequence[str]) -> Grid:
    """A grid from words such as `mask_ratio=0.5,0.75`; an InputError names the word that is not one.

    Names are the fields of RunConfig, values are of their types; a field with one value holds for all cells.
    """
    kinds = field_types()
    grid: Grid = {}
    for word in words:
        name, equals, values = word.partition("=")
        name = name.replace("-", "_")
        if not equals or not values:
            raise InputError(
                f"{word!r} is no part of a grid; expected a field and its values, as in mask_ratio=0.5,0.9"
            )
        if name not in kinds:
            raise InputError(f"{name!r} is no field of RunConfig; there are {', '.join(kinds)}")
        if name in grid:
            raise InputError(f"{name} stands twice in the grid: give all its values in one word, with commas")
        grid[name] = tuple(_value(name, text.strip(), kinds[name]) for text in values.split(","))
        if len(set(grid[name])) < len(grid[name]):
            raise InputError(f"{word!r} names a value twice")
    if not grid:
        raise InputError("the grid is empty; give a field and its values, as in --grid mask_ratio=0.5,0.75,0.95")
    return grid


def _value(name: str, text: str, kind: Any) -> Any:
    if get_origin(kind) is Literal:
        if text not in get_args(kind):
            raise InputError(f"{name} is {text!r} in the grid; there are {', '.join(get_args(kind))}")
        return text
    if kind is bool:
        words = {"true": True, "false": False}
        if text.lower() not in words:
            raise InputError(f"{name} is {text!r} in the grid; expected true or false")
        return words[text.lower()]
    if get_origin(kind) in (Union, UnionType):  # a number, or a word in its place
        kind, word = get_args(kind)
        if text in get_args(word):
            return text
    try:
        value = kind(text)
    except ValueError:
        value = math.nan
    if isinstance(value, float) and not math.isfinite(value):
        said = {int: "a whole number", float: "a number"}[kind]
        raise InputError(f"{name} is {text!r} in the grid; expected {said}")
    if name == "model" and text not in MODELS:
        raise InputError(f"model {text!r} is unknown; there are {', '.join(MODELS)}")
    return value


def make_cells(base: RunConfig, grid: Grid, about: Any = None) -> list[Cell]:
    """All combinations of a grid's values on top of a configuration; an InputError names the first that is refused.

    about: plain values that decide the runs as well, such as which videos they see: with others the cells are others.
    """
    cells = []
    for values in itertools.product(*grid.values()):
        settings = dict(zip(grid, values, strict=True))
        try:
            config = base.replace(**settings)
            config.shares(1)
        except InputError as error:
            raise InputError(f"the cell with {describe(settings)} is refused: {error}") from None
        cells.append(Cell(settings, config, prefix_of(base, config, about)))
    return cells


def prefix_of(base: RunConfig, config: RunConfig, about: Any) -> str:
    """What differs from the preset, for people, and a checksum of all that decides the numbers."""
    deciding = {name: value for name, value in config.flat().items() if name not in FREE}
    changed = [f"{name}-{value}" for name, value in deciding.items() if value != base.flat()[name]]
    checksum = hashlib.sha256(json.dumps([deciding, about], sort_keys=True, default=str).encode()).hexdigest()[:8]
    return re.sub(r"[^\w.-]", "-", "_".join([*changed, ""]))[:150] + f"{checksum}_"


def finished_run(cell: Cell, root: Path) -> str | None:
    """The name of the newest run of a cell that has reached its last epoch, or None."""
    stamp = re.compile(re.escape(cell.prefix) + r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d")
    found = (root / "checkpoints").glob(f"*/{cell.config.optimisation.epochs}.pt")
    runs = [path.parent.name for path in found if stamp.fullmatch(path.parent.name)]
    return max((run for run in runs if (root / "losses" / f"{run}.txt").is_file()), default=None)


def read_result(cell: Cell, root: Path, note: str = "not run yet") -> Result:
    """The last losses of a cell that is finished; of another one the note."""
    run = finished_run(cell, root)
    if run is None:
        return Result(cell, note=note)
    held_out = root / "test_losses" / f"{run}.txt"
    validation = read_losses(held_out)[-1].mean if held_out.is_file() else None
    return Result(cell, run, read_losses(root / "losses" / f"{run}.txt")[-1].mean, validation)


def varied(grid: Grid) -> list[str]:
    """The fields that make the rows of a table: those with several values, seeds left out."""
    return [name for name, values in grid.items() if len(values) > 1 and name != "seed"]


def rows_of(results: Sequence[Result], grid: Grid) -> list[Row]:
    """Results gathered over seeds, in the order of the grid."""
    groups: dict[tuple[Any, ...], list[Result]] = {}
    for result in results:
        groups.setdefault(tuple(result.cell.settings[name] for name in varied(grid)), []).append(result)
    rows = []
    for key, group in groups.items():
        losses = {
            name: [value for value in (getattr(result, name) for result in group) if value is not None]
            for name in MEASURES
        }
        notes = [
            f"seed {result.cell.config.run.seed}: {result.note}" if len(group) > 1 else result.note
            for result in group
            if result.note
        ]
        rows.append(
            Row(dict(zip(varied(grid), key, strict=True)), sum(r.run is not None for r in group), losses, notes)
        )
    return rows


def spread(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean, and standard deviation with n − 1 in the denominator; None for what so few values do not have."""
    mean = math.fsum(values) / len(values) if values else None
    return mean, statistics.stdev(values) if len(values) > 1 else None


def check_tables(path: Path, grid: Grid) -> None:
    """An InputError if what `write_tables` would write to is there already and not of a grid over these fields."""
    runs = path.with_name(f"{path.name}_runs.csv")
    theirs = runs.read_text().partition("\n")[0] if runs.is_file() else None
    if theirs == _csv([_heads(grid)]).strip():
        return
    there = [f for f in (runs, *(path.with_name(path.name + end) for end in (".md", ".csv", ".png"))) if f.exists()]
    if there:
        raise InputError(f"{there[0]} is there already, and not of a grid over {', '.join(grid)}: give another name")


def _heads(grid: Grid) -> list[str]:
    return [*grid, "run", *MEASURES, "note"]


def write_tables(results: Sequence[Result], grid: Grid, base: str, path: Path) -> None:
    """`<path>.md` for people, `<path>.csv` with the same rows, `<path>_runs.csv` with one line a run.

    path: without a suffix. base: what the grid stands on, such as the preset, in words.
    """
    rows, fields = rows_of(results, grid), varied(grid)
    measures = [name for name in MEASURES if name == "train" or any(row.losses[name] for row in rows)]
    summary: list[list[Any]] = [[*fields, "n", *(f"{m}_{what}" for m in measures for what in ("mean", "sd")), "notes"]]
    for row in rows:
        numbers = [number for name in measures for number in spread(row.losses[name])]
        summary.append([*row.settings.values(), row.finished, *numbers, "; ".join(row.notes)])
    runs: list[list[Any]] = [_heads(grid)]
    runs += [[*r.cell.settings.values(), r.run, r.train, r.validation, r.note] for r in results]
    _write(path.with_name(f"{path.name}.md"), _markdown(rows, measures, grid, base))
    _write(path.with_name(f"{path.name}.csv"), _csv(summary))
    _write(path.with_name(f"{path.name}_runs.csv"), _csv(runs))


def _markdown(rows: Sequence[Row], measures: Sequence[str], grid: Grid, base: str) -> str:
    fields, noted = varied(grid), any(row.notes for row in rows)
    heads = [*fields, "n", *(MEASURES[name] for name in measures), *(["remarks"] if noted else [])]
    lines = [f"# Ablation: {' × '.join(fields) or 'seeds'}", "", f"{base}.", ""]
    lines += [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for row in rows:
        texts = [*map(str, row.settings.values()), str(row.finished)]
        texts += [_with_spread(row.losses[name]) for name in measures]
        texts += ["; ".join(row.notes).replace("|", "\\|")] if noted else []
        lines.append(f"| {' | '.join(texts)} |")
    lines += [
        "",
        "Losses of the last epoch on hidden patches: mean ± standard deviation over n runs (n − 1 in the denominator).",
    ]
    task = [name for name in fields if name in _ANOTHER_TASK]
    if task:
        lines.append(
            f"Rows that differ in {', '.join(task)} are different tasks: their losses say how hard each is, not which "
            "features are better; for that, evaluate the checkpoints (`siammae eval`)."
        )
    return "\n".join(lines) + "\n"


def _with_spread(losses: Sequence[float]) -> str:
    mean, deviation = spread(losses)
    if mean is None:
        return "–"
    return f"{mean:.4f}" + (f" ± {deviation:.4f}" if deviation is not None else "")


def _csv(rows: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(["" if x is None else x for x in row] for row in rows)
    return text.getvalue()


def _write(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write(text.encode()))
