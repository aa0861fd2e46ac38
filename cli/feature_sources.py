"""Feature sources by name, checkpoints of this workspace among them: no command, but shared by `eval` and `track`."""

from pathlib import Path

import torch

from evaluation.controls import Tracker, tracker
from evaluation.features import SOURCES, Source, feature_source, model_source
from mae.files import InputError
from ml.checkpoints import find_checkpoint, load_model, load_run
from ml.SiamMAE import build_model

ALL = ("a run, <run>/<epoch> or a checkpoint's file", "untrained:CHECKPOINT", *SOURCES, "copy", "oracle[:SOURCE]")


def open_source(name: str, root: Path, device: str, half: bool) -> Tracker:
    """What a name stands for: see `ALL`."""
    return tracker(name, lambda rest: _features(rest, root, device, half))


def _features(name: str, root: Path, device: str, half: bool) -> Source:
    kind, _, rest = name.partition(":")
    if name in SOURCES or kind in ("mae", "timm"):
        return feature_source(name, device=device, half=half)
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
