"""Feature sources by name, checkpoints of this workspace among them: no command, but shared by `eval` and `track`."""

import re
from functools import partial
from pathlib import Path
from typing import Any

import torch

from common.errors import InputError
from evaluation.controls import Tracker, tracker
from evaluation.features import SOURCES, Source, feature_source, model_source
from mae.models_mae_st import SpatiotemporalMAE
from mae.weights import load_pretrained_st
from ml.checkpoints import find_checkpoint, load_model, load_run
from ml.SiamMAE import build_model

ALL = (
    "a run, <run>/<epoch> or a checkpoint's file", "untrained:CHECKPOINT", *SOURCES, "mae_st:PATH",
    "one_tubelet:MAE-ST", "copy", "oracle[:SOURCE]",
)  # fmt: skip


def open_source(name: str, root: Path, device: str, half: bool) -> Tracker:
    """What a name stands for: see `ALL`."""
    return tracker(name, lambda rest: _features(rest, root, device, half))


def _features(name: str, root: Path, device: str, half: bool) -> Source:
    kind, _, rest = name.partition(":")
    if name in SOURCES or kind in ("mae", "timm"):
        return feature_source(name, device=device, half=half)
    if kind == "one_tubelet" and rest:  # of a still clip as short as can be: cheaper, and without a mean over time
        model, file = _clip_model(rest, root)
        model.encode = partial(model.encode, steps=1)
        return model_source(name, model, device=device, half=half, file=file)
    if kind == "mae_st" and rest:
        model, file = _clip_model(name, root)
        return model_source(name, model, device=device, half=half, file=file)
    if kind == "untrained" and rest:
        config = load_run(find_checkpoint(rest, root))["config"]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = build_model(config)
        return model_source(f"untrained (as {rest}, seed 0)", model, device=device, half=half)
    try:
        path = find_checkpoint(name, root)
    except InputError as error:
        raise InputError(f"{error}; or as a source one of {', '.join(ALL[1:])}") from error
    return model_source(name, load_model(path)[0], device=device, half=half, file=path)


def _clip_model(name: str, root: Path) -> tuple[Any, Path | None]:
    """A MAE-ST by `mae_st:PATH` of public weights or as a checkpoint, and its file, if it is one."""
    kind, _, rest = name.partition(":")
    if kind == "mae_st" and rest:
        size = re.search(r"vit_(small|base|large|huge)", Path(rest).name)
        model = load_pretrained_st(rest, f"mae_st_vit_{size[1] if size else 'large'}_patch16")
        return model, Path(rest) if Path(rest).is_file() else None
    path = find_checkpoint(name, root)
    model = load_model(path)[0]
    if not isinstance(model, SpatiotemporalMAE):
        raise InputError(f"{name} is a model of pairs; one_tubelet: is for a MAE-ST, which takes an image as a clip")
    return model, path
