"""The figure of an ablation: losses over the first field of its grid, one colour for each value of the second."""

import itertools
import textwrap
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ml.ablation import MEASURES, Grid, Result, Row, describe, rows_of, spread, varied

_MARKERS = "osD^vP*X"


def ablation_figure(results: Sequence[Result], grid: Grid, *, heading: str = "") -> Figure:
    """One row of panels a measure, one column for each combination of the third and further fields of the grid.

    A large mark is the mean over seeds, a bar its standard deviation, a faint point one run. The values of the first
    field stand at even distances, joined by a line where they are numbers; those of the second are a little apart.
    """
    rows, fields = rows_of(results, grid), varied(grid)
    along, colours, others = fields[:1], fields[1:2], fields[2:]
    measures = [name for name in MEASURES if name == "train" or any(row.losses[name] for row in rows)]
    panels = list(itertools.product(*(grid[name] for name in others)))
    figure = Figure(figsize=(max(5.6, 3.4 * len(panels) + 1.2), 3.3 * len(measures) + 0.9), layout="constrained")
    axes = figure.subplots(len(measures), len(panels), squeeze=False, sharex=True, sharey="row")
    for line, measure in zip(axes, measures, strict=True):
        line[0].set_ylabel(MEASURES[measure])
        for axis, panel in zip(line, panels, strict=True):
            here = [row for row in rows if tuple(row.settings[name] for name in others) == panel]
            _panel(axis, here, measure, grid, along, colours)
    for axis, panel in zip(axes[0], panels, strict=True):
        axis.set_title(describe(dict(zip(others, panel, strict=True))).replace(", ", "\n"), fontsize=9)
    for axis in axes[-1]:
        axis.set_xlabel(along[0] if along else "")
    if colours:
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, title=colours[0], loc="outside right upper", frameon=False, fontsize=8)
    seeds = max((row.finished for row in rows), default=0)
    bars = "mean and standard deviation over seeds; faint: each run" if seeds > 1 else "one run each"
    figure.suptitle(textwrap.fill(heading, int(11 * figure.get_figwidth())), fontsize=10)
    below = textwrap.fill(f"last epoch, hidden patches; {bars}", int(15 * figure.get_figwidth()))
    figure.supxlabel(below, fontsize=8, color="0.35")
    return figure


def _panel(axis: Axes, rows: Sequence[Row], measure: str, grid: Grid, along: list[str], colours: list[str]) -> None:
    values: tuple[Any, ...] = grid[along[0]] if along else ("",)
    shades: tuple[Any, ...] = grid[colours[0]] if colours else (None,)
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    for k, shade in enumerate(shades):
        apart = 0.12 * (k - (len(shades) - 1) / 2) * min(1.0, 5 / len(shades))
        means, deviations, places = [], [], []
        for row in rows:
            if colours and row.settings[colours[0]] != shade:
                continue
            place = (values.index(row.settings[along[0]]) if along else 0) + apart
            mean, deviation = spread(row.losses[measure])
            if mean is not None:
                places.append(place)
                means.append(mean)
                deviations.append(deviation or 0.0)
            if len(row.losses[measure]) > 1:
                here = [place] * len(row.losses[measure])
                axis.plot(here, row.losses[measure], ".", color=f"C{k % 10}", alpha=0.35, markersize=5)
        axis.errorbar(
            places, means, deviations, color=f"C{k % 10}", marker=_MARKERS[k % len(_MARKERS)], markersize=5.5,
            capsize=3, linewidth=1.1, linestyle="-" if numbers and along else "none", label=str(shade),
        )  # fmt: skip
    axis.set_xticks(range(len(values)), [str(value) for value in values], rotation=0 if len(values) < 6 else 30)
    axis.set_xlim(-0.5, len(values) - 0.5)
    axis.grid(alpha=0.25, axis="y")
