"""Reconstructions of pairs and loss curves, drawn without a window. The only file of `ml` that knows matplotlib."""

import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from mae.files import write_atomically
from ml.logs import EpochLoss
from ml.reconstruction import Reconstruction

_COLUMNS = (
    "f1, the past",
    "f2, the future",
    "f2 as it is seen",
    "prediction, visible\npatches pasted in",
    "raw prediction",
)


def reconstruction_figure(rows: Sequence[Reconstruction], *, titles: Sequence[str] = (), heading: str = "") -> Figure:
    """One row a pair: f1, f2, what is visible of f2, the prediction with visible patches pasted in, the raw one."""
    figure = Figure(figsize=(10, 2.05 * len(rows) + 1.05), layout="constrained")
    axes = figure.subplots(len(rows), 5, squeeze=False)
    for r, row in enumerate(rows):
        for c, picture in enumerate((row.past, row.future, row.masked, row.pasted, row.raw)):
            axis = axes[r, c]
            axis.imshow(_picture(picture), interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            for spine in axis.spines.values():
                spine.set_visible(False)
            if r == 0:
                axis.set_title(_COLUMNS[c], fontsize=9)
        gap = "" if row.gap is None else f"gap {row.gap:.2f} s\n"
        title = f"{titles[r]}\n" if titles else ""
        axes[r, 0].set_ylabel(f"{title}{gap}loss {row.loss:.3f}", fontsize=8)
    figure.suptitle(heading, fontsize=11)
    figure.supxlabel("; ".join(dict.fromkeys(row.caption for row in rows)), fontsize=8, color="0.35")
    return figure


def frames_figure(frames: Sequence[Tensor], titles: Sequence[str], heading: str = "") -> Figure:
    """Frames, each [3, H, W] in [0, 1] or uint8, in one row under their titles."""
    figure = Figure(figsize=(2.6 * len(frames), 3.0), layout="constrained")
    for axis, frame, title in zip(figure.subplots(1, len(frames), squeeze=False)[0], frames, titles, strict=True):
        axis.imshow(_picture(frame), interpolation="nearest")
        axis.set_axis_off()
        axis.set_title(title, fontsize=9)
    figure.suptitle(heading, fontsize=11)
    return figure


def loss_figure(runs: Mapping[str, Sequence[EpochLoss]], *, heading: str = "Loss on hidden patches") -> Figure:
    """One curve a run: the mean of each epoch, over the losses of its steps in a lighter tone."""
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axis = figure.subplots()
    for k, (name, epochs) in enumerate(runs.items()):
        colour = f"C{k % 10}"
        places = [line.epoch if line.epoch is not None else n for n, line in enumerate(epochs, 1)]
        steps = [
            (place - 1 + (i + 0.5) / len(line.losses), loss)
            for place, line in zip(places, epochs, strict=True)
            for i, loss in enumerate(line.losses)
        ]
        if steps:
            axis.plot(*zip(*steps, strict=True), color=colour, alpha=0.22, linewidth=0.7)
        axis.plot(
            places, [line.mean for line in epochs], color=colour, marker="." if len(places) < 40 else "", label=name
        )
    axis.set(xlabel="epoch", ylabel="mean squared error", title=heading)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(alpha=0.25)
    if runs:
        axis.legend(fontsize=8, frameon=False)
    return figure


def save_figure(figure: Figure, path: str | Path, dpi: int = 110) -> Path:
    """Write a figure as PNG, whole or not at all."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=dpi)
    write_atomically(path, lambda file: file.write(picture.getvalue()))
    return Path(path)


def show(figure: Figure) -> None:
    """Show a figure in the notebook that is running, if one is."""
    shell = sys.modules.get("IPython") and sys.modules["IPython"].get_ipython()
    if shell is not None and hasattr(shell, "kernel"):
        from IPython.display import Image, display

        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=100)
        display(Image(picture.getvalue()))


def _picture(image: Tensor):
    return image.permute(1, 2, 0).numpy()
