"""Uncertainty to look at: heat maps beside reconstructions, sparsification and calibration curves."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib.figure import Figure

from ml.extensions.calibration import LEVELS, STEPS
from ml.extensions.uncertainty import KNOWS, Member, uncertainty_maps
from ml.reconstruction import Sample, reconstruct


def heat_figure(members: Sequence[Member], samples: Sequence[Mapping[str, Any]], *, draws: int = 8) -> Figure:
    """One row a pair: f1, f2 as it is seen, the prediction, its error, and what each way says of hidden patches.

    samples: `video` [2, 3, H, W], `seed` and `path`, of at least two videos. Each heat map has a scale of its own.
    """
    model = members[0].model
    batch = {
        "video": torch.stack([torch.as_tensor(s["video"]) for s in samples]),
        "seed": torch.stack([torch.as_tensor(s["seed"]) for s in samples]),
        "path": [s["path"] for s in samples],
    }
    mask, maps = uncertainty_maps(members, batch, draws=draws)
    shown = {name: each for name, each in maps.items() if name != "constant"}
    first = next(iter(maps.values())).error
    heats = {"error": first.sqrt(), **{name: each.values for name, each in shown.items()}}
    figure = Figure(figsize=(1.35 * (3 + len(heats)), 1.4 * len(samples) + 0.7), layout="constrained")
    grid = figure.subplots(len(samples), 3 + len(heats), squeeze=False)
    for row, (axes, sample) in enumerate(zip(grid, samples, strict=True)):
        pair: Sample = {"video": sample["video"], "seed": sample["seed"]}
        made = reconstruct(pair, model)
        assert made.past is not None
        pictures = {"f1": made.past, "f2 as it is seen": made.masked[0], "prediction": made.pasted[0]}
        for axis, (name, picture) in zip(axes, pictures.items(), strict=False):
            axis.imshow(picture.permute(1, 2, 0).numpy(), interpolation="nearest")
            _bare(axis, name if row == 0 else "")
        for axis, (name, values) in zip(axes[3:], heats.items(), strict=True):
            pixels = values[row : row + 1].expand(-1, -1, 3 * model.patch_size**2).cpu()
            heat = model.unpatchify(pixels)[0].mean(0)
            hidden = model.unpatchify(mask[row : row + 1, :, None].expand_as(pixels).cpu())[0, 0] > 0
            axis.imshow(heat.where(hidden, torch.nan).numpy(), cmap="magma", interpolation="nearest")
            _bare(axis, name.replace(", ", ",\n").replace(" over", "\nover") if row == 0 else "")
    figure.supxlabel(
        f"hidden patches alone; bright: uncertain, or wrong; {' and '.join(KNOWS)} know the answer", fontsize=8
    )
    return figure


def _bare(axis: Any, title: str) -> None:
    axis.set(xticks=[], yticks=[])
    if title:
        axis.set_title(title, fontsize=7)


def curves_figure(found: Mapping[str, Mapping[str, Any]]) -> Figure:
    """What `Evidence.measure` found: RMSE left over the share removed, and how often errors lie within intervals."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    shares = [k / STEPS for k in range(STEPS)]
    for k, (name, row) in enumerate(found.items()):
        style = dict(color=f"C{k % 10}", linestyle=":" if row["knows the answer"] else "-", linewidth=1.4)
        left.plot(shares, row["curve"], label=f"{name}: {row['AUSE']:.3f}", **style)
        if "covered" in row:
            right.plot(LEVELS, row["covered"][1], label=f"{name}: {row['coverage error recalibrated']:.3f}", **style)
            right.plot(LEVELS, row["covered"][0], color=style["color"], alpha=0.3)
    left.plot(shares, next(iter(found.values()))["oracle"], "k--", linewidth=1, label="the errors themselves")
    right.plot((0, 1), (0, 1), "k--", linewidth=1)
    left.set(xlabel="share of hidden patches removed, most uncertain first", ylabel="RMSE of the rest, relative")
    left.set_title("sparsification (AUSE; dotted: knows the answer)", fontsize=10)
    right.set(xlabel="probability of the interval", ylabel="share of pixels within")
    right.set_title("calibration, recalibrated (pale: as it comes); coverage error", fontsize=10)
    for axis in (left, right):
        axis.legend(fontsize=7, frameon=False)
        axis.grid(alpha=0.25)
    return figure


def measures_table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown, one line a way, best AUSE first."""
    columns = ("AUSE", "Spearman", "NLL recalibrated", "ENCE recalibrated", "coverage error recalibrated", "factor")
    lines = ["| uncertainty | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    for name, row in sorted(found.items(), key=lambda item: item[1]["AUSE"]):
        cells = [f"{row[column]:.3f}" if column in row else "–" for column in columns]
        name = name.replace("|", "\\|") + " (knows the answer)" * row["knows the answer"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
