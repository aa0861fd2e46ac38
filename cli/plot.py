"""siammae plot CHECKPOINT [--samples FILE | --data VIDEOS] --out FIGURE.png"""

from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from common.errors import InputError
from dataset_loader import builtin_clips, get_kinetics_dataset
from dataset_loader.preparing.encoding import FORMATS, write_video
from mae.masking import MaskKind
from mae.models_mae_st import SpatiotemporalMAE
from ml.figures import animation, clip_figure, save_figure, save_gif
from ml.foreign import open_model
from ml.utils import best_device, config_of, reconstruct_clips, samples_figure


def main(
    checkpoint: Annotated[str, tyro.conf.Positional],
    out: Path,
    samples: Path | None = None,
    data: Path | None = None,
    mask_ratio: tuple[float, ...] = (),
    mask_kind: MaskKind | None = None,
    clips: int = 2,
    root: Path = Path(),
    device: str | None = None,
    statistics: Literal["past", "visible", "target"] | None = None,
) -> None:
    """Draw what a checkpoint makes of a few pairs or clips: the frames, what is visible of them, and the prediction.

    Args:
        checkpoint: a run, <run>/<epoch>, or any file of weights with a decoder (see `siammae weights inspect`)
        out: the file to write: a PNG; of clips also a film, such as .gif or .mp4
        samples: frame pairs, from `siammae samples`; default: samples.pickle
        data: of clips: the folder of videos, the ledger or the shard that they come from; default: the built-in clips
        mask_ratio: one or more shares to hide, side by side; default: as in training
        mask_kind: of clips: another kind of mask than in training
        clips: how many of them, spread over the videos
        root: folder that holds checkpoints/
        device: cuda, mps, cpu; default: the best there is
        statistics: whose mean and spread turn normalised predictions into colours: of pairs f1's (past), of clips the
            visible tubelets' (visible), or the hidden patch's own (target), which gives a part of the answer away
    """
    if out.exists():
        raise InputError(f"{out} exists already and is not overwritten; name another file or move it away")
    model, saved = open_model(checkpoint, root, best_device(device))
    heading = f"{saved['run']}, epoch {saved['epoch']}" if "epoch" in saved else saved["run"]
    if isinstance(model, SpatiotemporalMAE):
        if samples is not None:
            raise InputError(f"{samples} holds pairs, and this is a model of clips: name videos with --data instead")
        if statistics == "past":
            raise InputError("statistics are past for pairs; this is a model of clips: visible or target")
        chosen = _clips(data, saved, clips)
        rows, names = reconstruct_clips(
            model, chosen, mask_ratios=mask_ratio, mask_kind=mask_kind, statistics=statistics or "visible"
        )
        _write(rows, names, heading, out)
    else:
        if data is not None or mask_kind is not None or out.suffix.lower() != ".png":
            raise InputError(
                "this is a model of pairs: it is drawn as a PNG, without --mask-kind, of the pairs in a file "
                "(siammae samples --data VIDEOS --out FILE makes one for --samples FILE)"
            )
        if statistics == "visible":
            raise InputError("statistics are visible for clips; this is a model of pairs: past or target")
        hidden = "" if mask_ratio else f": {model.mask_ratio:.0%} of f2 hidden"
        figure = samples_figure(
            model, samples or Path("samples.pickle"), heading=heading + hidden, statistics=statistics or "past",
            mask_ratios=mask_ratio,
        )  # fmt: skip
        save_figure(figure, out)
    print(out)


def _clips(data: Path | None, saved: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """So many clips, evenly spread over the videos, drawn as in the checkpoint's training but for the augmentation."""
    if count < 1:
        raise InputError(f"clips is {count}; expected at least 1")
    arguments = config_of(saved).replace(repeated_sampling=1, visits=1, seed=0).dataset_arguments
    try:
        files = builtin_clips() if data is None else data
    except InputError as error:
        raise InputError(f"{error}; or name videos of your own with --data") from None
    arguments["visits"] = count  # in case that there are fewer videos
    dataset = get_kinetics_dataset(files, augment=False, **arguments)
    videos = len(dataset.paths)
    places = np.linspace(0, videos - 1, min(count, videos)).round().astype(int)
    return [dataset[int(places[k % len(places)]) + videos * (k // len(places))] for k in range(count)]


def _write(rows: list[Any], names: list[str], heading: str, out: Path) -> None:
    """A contact sheet, or a film at the speed of the clip, by the suffix."""
    suffix = out.suffix.lower()
    times = rows[0].time
    seconds = (times[-1] - times[0]) / max(1, len(times) - 1) or 0.25
    if suffix == ".png":
        save_figure(clip_figure(rows, titles=names, heading=heading), out)
    elif suffix == ".gif":
        save_gif(animation(rows), out, seconds=seconds)
    elif suffix in FORMATS:
        write_video(out, animation(rows).permute(0, 2, 3, 1).numpy(), 1 / seconds)
    else:
        raise InputError(f"{out} ends in {suffix or 'nothing'}; clips are drawn as .png, .gif, {', '.join(FORMATS)}")
