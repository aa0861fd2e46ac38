"""What is drawn, without a window: reconstructions of pairs and clips, loss curves, and the results of a checkpoint.

Nothing heavy is imported until something is drawn, so that loss curves need no torch.
"""

import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from common.files import write_atomically
from ml.logs import EpochLoss, append_line, read_losses

if TYPE_CHECKING:
    import torch
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

    from ml.loading import Loader
    from ml.reconstruction import Reconstruction, Sample
    from ml.SiamMAE import Model

_COLUMNS = (
    "f1, the past",
    "f2, the future",
    "f2 as it is seen",
    "prediction, visible\npatches pasted in",
    "raw prediction",
)


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _draw(axis: "Axes", picture: "Tensor", title: str = "") -> None:
    """A picture [3, H, W] without ticks and frame."""
    axis.imshow(picture.permute(1, 2, 0).numpy(), interpolation="nearest")
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
    if title:
        axis.set_title(title, fontsize=9)


def reconstruction_figure(
    rows: "Sequence[Reconstruction]", *, titles: Sequence[str] = (), heading: str = ""
) -> "Figure":
    """Pairs, one in each row: f1, f2, what is visible of f2, the prediction with visible patches pasted in, the raw
    one. Clips, a sheet of each: its predicted frames, what is visible of them, the prediction. titles: one each."""
    figure = _sheets(rows, titles) if rows[0].past is None else _pairs(rows, titles)
    figure.suptitle(heading, fontsize=11)
    figure.supxlabel("; ".join(dict.fromkeys(row.caption for row in rows)), fontsize=8, color="0.35")
    return figure


def _pairs(rows: "Sequence[Reconstruction]", titles: Sequence[str]) -> "Figure":
    """A line for each future of a pair."""
    lines = [(r, k) for r, row in enumerate(rows) for k in range(len(row.frames))]
    figure = _figure(10, 2.05 * len(lines) + 1.05)
    for number, (axes, (r, k)) in enumerate(zip(figure.subplots(len(lines), 5, squeeze=False), lines, strict=True)):
        row = rows[r]
        assert row.past is not None
        pictures = (row.past, *(frames[k] for frames in (row.frames, row.masked, row.pasted, row.raw)))
        for axis, picture, column in zip(axes, pictures, _COLUMNS, strict=True):
            _draw(axis, picture, column if number == 0 else "")
        gap = "" if row.times is None else f"gap {row.times[1 + k] - row.times[0]:.2f} s\n"
        axes[0].set_ylabel(
            f"{titles[r]}\n{gap}loss {row.loss:.3f}" if titles else f"{gap}loss {row.loss:.3f}", fontsize=8
        )
    return figure


def _sheets(clips: "Sequence[Reconstruction]", titles: Sequence[str]) -> "Figure":
    height, width = clips[0].frames.shape[-2:]
    columns, tall = max(len(clip.numbers) for clip in clips), 3 * 1.4 * height / width + 0.5
    figure = _figure(max(6.4, 1.4 * columns + 0.4), tall * len(clips) + 0.8)
    for r, (clip, part) in enumerate(zip(clips, figure.subfigures(len(clips), 1, squeeze=False)[:, 0], strict=True)):
        title = f"{titles[r].partition(chr(10))[0]}: " if titles else ""
        part.suptitle(f"{title}{clip.mask_kind} mask, {clip.hidden:.1%} hidden, loss {clip.loss:.3f}", fontsize=9)
        axes = part.subplots(3, len(clip.numbers), squeeze=False)
        rows = {"original": clip.frames, "as it is seen": clip.masked, "predicted": clip.pasted}
        for row, (name, pictures) in zip(axes, rows.items(), strict=True):
            row[0].set_ylabel(name, fontsize=8)
            for axis, picture in zip(row, pictures, strict=True):
                _draw(axis, picture)
        for n, axis in enumerate(axes[0]):
            axis.set_title(f"{clip.time[n]:.2f} s" if clip.time else f"frame {clip.numbers[n]}", fontsize=8)
    return figure


def animation(clips: "Sequence[Reconstruction]", *, least_height: int = 160, gap: int = 4) -> "Tensor":
    """Clips as the frames of a film, uint8 [n, 3, H', W'], for `save_gif` or a video encoder: sides even, repeated
    pixels up to a legible size. One row a clip: original, as it is seen, predicted."""
    from torch.nn.functional import pad

    rows = []
    for clip in clips:
        scale = -(-least_height // clip.frames.shape[-2])
        parts = [pad(picture.repeat_interleave(scale, -2).repeat_interleave(scale, -1), (0, gap, 0, gap), value=1.0)
                 for picture in (clip.frames, clip.masked, clip.pasted)]  # fmt: skip
        rows.append(_joined(parts, -1)[..., :-gap])
    film = _joined(rows, -2)[..., :-gap, :]
    film = pad(film, (0, film.shape[-1] % 2, 0, film.shape[-2] % 2), value=1.0)
    return (film * 255).round().byte()


def _joined(pictures: "list[Tensor]", dim: int) -> "Tensor":
    import torch

    return torch.cat(pictures, dim=dim)


def save_gif(film: "Tensor", path: str | Path, *, seconds: float = 0.25) -> Path:
    """Write a film, uint8 [n, 3, H, W], as an animated GIF that repeats, whole or not at all; `seconds` a frame."""
    from PIL import Image

    pictures = [Image.fromarray(frame.permute(1, 2, 0).numpy()) for frame in film]
    file = io.BytesIO()
    pictures[0].save(
        file, format="gif", save_all=True, append_images=pictures[1:], duration=round(1000 * seconds), loop=0
    )
    write_atomically(path, lambda out: out.write(file.getvalue()))
    return Path(path)


def frames_figure(frames: "Sequence[Tensor]", titles: Sequence[str], heading: str = "") -> "Figure":
    """Frames, each [3, H, W] in [0, 1] or uint8, in one row under their titles."""
    figure = _figure(2.6 * len(frames), 3.0)
    for axis, frame, title in zip(figure.subplots(1, len(frames), squeeze=False)[0], frames, titles, strict=True):
        _draw(axis, frame, title)
    figure.suptitle(heading, fontsize=11)
    return figure


def loss_figure(runs: Mapping[str, Sequence[EpochLoss]], *, heading: str = "Loss on hidden patches") -> "Figure":
    """One curve a run: the mean of each epoch, over the losses of its steps in a lighter tone."""
    from matplotlib.ticker import MaxNLocator

    figure = _figure(7.5, 4.2)
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
    axis.set(xlabel="epoch", ylabel="mean error", title=heading)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(alpha=0.25)
    if runs:
        axis.legend(fontsize=8, frameon=False)
    return figure


def save_figure(figure: "Figure", path: str | Path, dpi: int = 110) -> Path:
    """Write a figure as PNG, whole or not at all."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=dpi)
    write_atomically(path, lambda file: file.write(picture.getvalue()))
    return Path(path)


def show(figure: "Figure") -> None:
    """Show a figure in the notebook that is running, if one is."""
    shell = sys.modules.get("IPython") and sys.modules["IPython"].get_ipython()
    if shell is not None and hasattr(shell, "kernel"):
        from IPython.display import Image, display

        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=100)
        display(Image(picture.getvalue()))


def plot_sample(
    sample: "Sample", model: "Model", device: "torch.device | str | None" = None, *, statistics: str | None = None
) -> "Figure":
    """Draw a sample as `reconstruction_figure` does: what is seen of it, and what the model predicts.

    sample: a dict with `video` ([F, 3, H, W], or more samples, of which the first is drawn) and perhaps `time` and
    `seed`, or the video alone. The mask follows from `seed` (0 if there is none). The caption says how normalised
    predictions became colours: statistics, one of `model.STATISTICS`.
    """
    from ml.devices import best_device
    from ml.reconstruction import reconstruct

    row = reconstruct(sample, model.to(best_device(device)), statistics=statistics)
    return reconstruction_figure([row], heading=f"{model.mask_ratio:.0%} hidden")


def samples_figure(
    model: "Model",
    samples_path: str | Path,
    *,
    heading: str = "",
    statistics: str | None = None,
    mask_ratios: Sequence[float] = (),
) -> "Figure":
    """What a model makes of the pairs of a file (`siammae samples`), one row each, with masks that stay the same.

    mask_ratios: a row for each of them, in place of the model's own.
    """
    from ml.reconstruction import reconstruct_all
    from ml.samples import pairs_for

    rows, names = reconstruct_all(
        model, pairs_for(model.sample_shape, samples_path), statistics=statistics, mask_ratios=mask_ratios
    )
    return reconstruction_figure(rows, titles=names, heading=heading)


def plot_results_from_checkpoint(
    checkpoint_name: str | Path,
    data_loader: "Loader",
    device: "torch.device | str | None" = None,
    samples_path: str | Path = "samples.pickle",
    *,
    root: str | Path = ".",
    statistics: str | None = None,
) -> "list[Figure]":
    """Evaluate a checkpoint on a loader and on the samples of a file, and return its figures.

    The configuration comes with the weights. The mean loss over the loader goes to `test_losses/<run>.txt` and the
    figures, one of the samples and one of the training losses if there is a log, to `test_losses/<run>_<epoch>*.png`.
    The file of samples holds pairs: a model of clips is drawn on the loader's first clips instead.
    """
    from ml.checkpoints import find_checkpoint, load_model
    from ml.devices import best_device
    from ml.reconstruction import first_samples, reconstruct_all
    from ml.samples import pairs_for
    from ml.validation import evaluate

    root, device = Path(root), best_device(device)
    path = find_checkpoint(checkpoint_name, root)
    model, checkpoint = load_model(path, device)
    of_pairs = model.sample_shape[0] == 2
    samples = pairs_for(model.sample_shape, samples_path) if of_pairs else []  # before the long part: may be missing
    run, epoch = checkpoint.get("run") or path.parent.name, checkpoint["epoch"]
    result = evaluate(model, data_loader, device)
    append_line(root / "test_losses" / f"{run}.txt", EpochLoss(epoch, result.mean, result.losses))
    rows, names = reconstruct_all(model, samples or first_samples(data_loader, 3), statistics=statistics)
    heading = f"{run}, epoch {epoch}: {model.mask_ratio:.0%} hidden, test loss {result.mean:.3f}"
    figures = [reconstruction_figure(rows, titles=names, heading=heading)]
    save_figure(figures[0], root / "test_losses" / f"{run}_{epoch}.png")
    log = root / "losses" / f"{run}.txt"
    if log.exists():
        figures.append(loss_figure({run: read_losses(log)}))
        save_figure(figures[1], root / "test_losses" / f"{run}_{epoch}_losses.png")
    return figures
