"""siammae plot CHECKPOINT [--samples FILE | --data VIDEOS] --out FIGURE.png"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from common.errors import InputError
from ml.config import MaskKind

if TYPE_CHECKING:
    from ml.reconstruction import Reconstruction


def main(
    checkpoint: Annotated[str, tyro.conf.Positional],
    out: Path,
    samples: Path | None = None,
    data: Path | None = None,
    mask_ratio: tuple[float, ...] = (),
    mask_kind: MaskKind | None = None,
    gaps: str = "",
    rollout: int = 0,
    count: int = 4,
    root: Path = Path(),
    device: str | None = None,
    statistics: str | None = None,
) -> None:
    """Draw what a checkpoint makes of a few pairs or clips: the frames, what is visible of them, and the prediction.

    Args:
        checkpoint: a run, <run>/<epoch>, or any file of weights with a decoder (see `siammae weights inspect`)
        out: the file to write: a PNG; of clips and of several futures also a film, such as .gif or .mp4
        samples: frame pairs, from `siammae samples`; default for a model of pairs: samples.pickle
        data: draw from these videos instead: a folder, a ledger or a shard; default for clips: the built-in ones
        mask_ratio: one or more shares to hide, side by side; default: as in training
        mask_kind: of clips: another kind of mask than in training
        gaps: of pairs: several futures of one past, so many seconds later, such as 0.13,0.5,1,1.6
        rollout: of pairs: so many steps of the one gap (default 0.25), each from the prediction before; prints its
            errors beside those of copying
        count: pairs or clips from the videos, spread over them
        root: folder that holds checkpoints/
        device: cuda, mps, cpu; default: the best there is
        statistics: whose mean and spread turn normalised predictions into colours: of pairs f1's (past), of clips the
            visible tubelets' (visible), or the hidden patch's own (target), which gives a part of the answer away
    """
    from ml.devices import best_device
    from ml.foreign import open_model
    from ml.reconstruction import reconstruct_all
    from ml.samples import pairs_for

    if out.exists():
        raise InputError(f"{out} exists already and is not overwritten; name another file or move it away")
    if samples is not None and data is not None:
        raise InputError("samples and data are both given; draw from the one or from the other")
    model, saved = open_model(checkpoint, root, best_device(device))
    epoch = f", epoch {saved['epoch']}" if "epoch" in saved else ""
    if gaps or rollout:
        if model.sample_shape[0] != 2 or samples is not None:
            raise InputError(
                "gaps and rollout show several futures of one past: of a model of pairs, from videos (--data)"
            )
        seconds = _seconds(gaps, rollout)
        chosen = _from_videos(data, saved, count, seconds)
        rows, names = _futures(model, chosen, seconds, mask_ratio, statistics, rollout)
        write(rows, names, f"{saved['run']}{epoch}{f': {rollout} steps of {seconds[0]:g} s' if rollout else ''}", out)
        print(out)
        return
    if samples is not None or (data is None and model.sample_shape[0] == 2):
        chosen = pairs_for(model.sample_shape, samples or Path("samples.pickle"))
    else:
        chosen = _from_videos(data, saved, count)
    rows, names = reconstruct_all(model, chosen, mask_ratios=mask_ratio, mask_kind=mask_kind, statistics=statistics)
    hidden = "" if mask_ratio else f": {model.mask_ratio:.0%} hidden"
    write(rows, names, f"{saved['run']}{epoch}{hidden}", out)
    print(out)


def write(rows: "Sequence[Reconstruction]", names: Sequence[str], heading: str, out: Path) -> None:
    """A figure, or a film at the speed of the clip, by the suffix."""
    from ml.extensions.futures_figure import futures_figure
    from ml.plots import animation, reconstruction_figure, save_figure, save_gif

    suffix = out.suffix.lower()
    if suffix == ".png":
        several = rows[0].past is not None and len(rows[0].frames) > 1
        draw = futures_figure if several else reconstruction_figure
        save_figure(draw(rows, titles=names, heading=heading), out)
        return
    from dataset_loader.preparing.encoding import FORMATS, write_video

    if suffix != ".gif" and suffix not in FORMATS:
        raise InputError(
            f"{out} ends in {suffix or 'nothing'}; clips and futures are drawn as .png, .gif, {', '.join(FORMATS)}"
        )
    if len(rows[0].frames) < 2:
        raise InputError(f"{out}: a film needs several predicted frames, and this model predicts one: write a .png")
    times, film = rows[0].time, animation(rows)
    seconds = ((times[-1] - times[0]) / (len(times) - 1) if times else 0) or 0.25
    if suffix == ".gif":
        save_gif(film, out, seconds=seconds)
    else:
        write_video(out, film.permute(0, 2, 3, 1).numpy(), 1 / seconds)


def _seconds(gaps: str, rollout: int) -> list[float]:
    """The futures' distances from the past."""
    try:
        seconds = [float(part) for part in gaps.split(",")] if gaps else [0.25]
    except ValueError:
        raise InputError(f"gaps are {gaps!r}; expected seconds, such as 0.13,0.5,1,1.6") from None
    if rollout < 0 or (rollout and len(seconds) > 1):
        raise InputError(f"rollout is {rollout}, of the gaps {gaps}; a roll-out has 1 or more steps of one gap")
    return [seconds[0] * (k + 1) for k in range(rollout)] if rollout else seconds


def _futures(
    model: Any,
    chosen: list[dict[str, Any]],
    seconds: list[float],
    mask_ratios: Sequence[float],
    statistics: str | None,
    rollout: int,
) -> "tuple[list[Reconstruction], list[str]]":
    """Several futures of each past, each from f1 or each from the prediction before."""
    from ml.extensions.rollout import errors_table, mean_errors, roll_out
    from ml.reconstruction import reconstruct_all

    if not rollout:
        return reconstruct_all(model, chosen, mask_ratios=mask_ratios, statistics=statistics)
    if len(mask_ratios) > 1 or statistics not in (None, "past"):
        raise InputError("a roll-out has one mask ratio, and its colours come from the past: statistics past")
    rolled = [roll_out(sample, model, mask_ratio=next(iter(mask_ratios), None)) for sample in chosen]
    print(errors_table(mean_errors(rolled), seconds))
    return [each.joined() for each in rolled], [Path(sample["path"]).stem for sample in chosen]


def _from_videos(
    data: Path | None, saved: dict[str, Any], count: int, seconds: Sequence[float] = ()
) -> list[dict[str, Any]]:
    """So many samples, spread evenly over the videos, drawn as in the checkpoint's training but not augmented; with
    `seconds`, pasts with futures so much later."""
    import numpy as np

    from cli.wiring import fixed_dataset
    from dataset_loader import builtin_clips
    from dataset_loader.random_temporal_subsample import ChosenGaps
    from ml.utils import config_of

    if count < 1:
        raise InputError(f"count is {count}; expected at least 1")
    try:
        files = builtin_clips() if data is None else data
    except InputError as error:
        raise InputError(f"{error}; or name videos of your own with --data") from None
    dataset = fixed_dataset(config_of(saved), files, visits=count)  # in case there are fewer videos
    if seconds:
        dataset.temporal = ChosenGaps(seconds)
    videos = len(dataset.paths)
    places = np.linspace(0, videos - 1, min(count, videos)).round().astype(int)
    return [dataset[int(places[k % len(places)]) + videos * (k // len(places))] for k in range(count)]
