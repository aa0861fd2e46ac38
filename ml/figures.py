"""Reconstructions of pairs and clips, and loss curves, drawn without a window.

The only file of `ml` that knows matplotlib and pillow.
"""

import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from common.files import write_atomically
from mae.models_mae_st import SpatiotemporalMAE
from ml.logs import EpochLoss
from ml.reconstruction import ClipReconstruction, ClipStatistics, Reconstruction, reconstruct_sample

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


def clip_figure(clips: Sequence[ClipReconstruction], *, titles: Sequence[str] = (), heading: str = "") -> Figure:
    """A contact sheet: for each clip its predicted frames, what is visible of them, and the prediction with visible
    tubelets pasted in, one row each. titles: one a clip, such as its mask."""
    height, width = clips[0].frames.shape[-2:]
    columns = max(len(clip.numbers) for clip in clips)
    tall = 3 * 1.4 * height / width + 0.5
    figure = Figure(figsize=(max(6.4, 1.4 * columns + 0.4), tall * len(clips) + 0.8), layout="constrained")
    for r, (clip, part) in enumerate(zip(clips, figure.subfigures(len(clips), 1, squeeze=False)[:, 0], strict=True)):
        title = f"{titles[r]}: " if titles else ""
        part.suptitle(f"{title}{clip.mask_kind} mask, {clip.hidden:.1%} hidden, loss {clip.loss:.3f}", fontsize=9)
        axes = part.subplots(3, len(clip.numbers), squeeze=False)
        rows = {"original": clip.frames, "as it is seen": clip.masked, "predicted": clip.pasted}
        for row, (name, pictures) in zip(axes, rows.items(), strict=True):
            row[0].set_ylabel(name, fontsize=8)
            for axis, picture in zip(row, pictures, strict=True):
                axis.imshow(_picture(picture), interpolation="nearest")
                axis.set(xticks=[], yticks=[])
                for spine in axis.spines.values():
                    spine.set_visible(False)
        for axis, n, number in zip(axes[0], range(len(clip.numbers)), clip.numbers, strict=True):
            axis.set_title(f"frame {number}" if clip.time is None else f"{clip.time[n]:.2f} s", fontsize=8)
    figure.suptitle(heading, fontsize=11)
    figure.supxlabel("; ".join(dict.fromkeys(clip.caption for clip in clips)), fontsize=8, color="0.35")
    return figure


def plot_clip(
    sample: dict[str, Any] | Tensor, model: SpatiotemporalMAE, *, statistics: ClipStatistics = "visible"
) -> Figure:
    """Draw a clip, the visible part of it, and the prediction with visible tubelets pasted in: `plot_sample` of clips.

    sample: a dict with `video` ([F, 3, H, W], or more clips, of which the first is drawn) and perhaps `time` and
    `seed`, or the video alone. The mask follows from `seed` (0 if there is none).
    """
    return clip_figure([reconstruct_sample(sample, model, statistics=statistics)])


def animation(clips: Sequence[ClipReconstruction], *, least_height: int = 160, gap: int = 4) -> Tensor:
    """Clips as the frames of a film, uint8 [n, 3, H', W'], for `save_gif` or a video encoder: sides even, repeated
    pixels up to a legible size. One row a clip: original, as it is seen, predicted."""
    rows = []
    for clip in clips:
        scale = -(-least_height // clip.frames.shape[-2])
        parts = [
            picture.repeat_interleave(scale, -2).repeat_interleave(scale, -1)
            for picture in (clip.frames, clip.masked, clip.pasted)
        ]
        space = torch.ones(*parts[0].shape[:-1], gap)
        rows.append(torch.cat([parts[0], space, parts[1], space, parts[2]], dim=-1))
        rows.append(torch.ones(*rows[-1].shape[:-2], gap, rows[-1].shape[-1]))
    film = torch.cat(rows[:-1], dim=-2)
    film = torch.nn.functional.pad(film, (0, film.shape[-1] % 2, 0, film.shape[-2] % 2), value=1.0)
    return (film * 255).round().to(torch.uint8)


def save_gif(film: Tensor, path: str | Path, *, seconds: float = 0.25) -> Path:
    """Write a film, uint8 [n, 3, H, W], as an animated GIF that repeats, whole or not at all; `seconds` a frame."""
    from PIL import Image

    pictures = [Image.fromarray(frame.permute(1, 2, 0).numpy()) for frame in film]
    file = io.BytesIO()
    pictures[0].save(
        file, format="gif", save_all=True, append_images=pictures[1:], duration=round(1000 * seconds), loop=0
    )
    write_atomically(path, lambda out: out.write(file.getvalue()))
    return Path(path)


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
