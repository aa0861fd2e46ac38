"""The study: one setting of a small run changed at a time, three seeds each, and what each change is worth.

A run is a cell: an arm (what is changed) and a seed. All runs start from the same image MAE, see the same videos for
the same number of steps and are scored alike, whatever they were trained for. `siammae study` runs what its budget
allows in the order of `ARMS`, all seeds of an arm before the next arm.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import InputError
from ml.ablation import Cell, prefix_of, spread
from ml.config import RunConfig
from ml.presets import preset

BASE = "base"


@dataclass(frozen=True)
class Arm:
    """What an arm changes in the base's configuration, and the question that it belongs to; whether it starts from the
    weights, and whether it is trained at all."""

    question: str
    changes: Mapping[str, Any]
    weights: bool = True
    trained: bool = True


_IMAGES = {"model": "mae_micro_patch8", "mask_ratio": 0.75}
ARMS: dict[str, Arm] = {
    "untrained": Arm("before training", {}, weights=False, trained=False),
    "the weights to start from": Arm("before training", _IMAGES, trained=False),
    BASE: Arm("the paper's recipe in small", {}),
    "mask 75 %": Arm("mask ratio", {"mask_ratio": 0.75}),
    "mask 50 %": Arm("mask ratio", {"mask_ratio": 0.50}),
    "cross": Arm("decoder", {"decoder_kind": "cross"}),
    "joint decoder": Arm("decoder", {"decoder_kind": "joint"}),
    "MAE": Arm("one frame", _IMAGES),
    "crops": Arm("pairing", {"pairing": "crops"}),
    "mixed": Arm("pairing", {"pairing": "mixed:video=1,video_shifted=1,jittered=1"}),
    "from nothing": Arm("weights", {}, weights=False),
    "joint encoder": Arm("encoder", {"encoder_kind": "joint"}),
    "2 futures": Arm("futures", {"futures": 2, "repeated_sampling": 1}),
    "motion": Arm("what is hidden", {"mask_strategy": "motion"}),
    "hard": Arm("what is hidden", {"mask_strategy": "hard"}),
    "second past": Arm("second frame", {"second": "past"}),
    "gaps up to 0.4 s": Arm("gap", {"max_gap": 12}),
    "gaps of 0.8 to 3.2 s": Arm("gap", {"min_gap": 24, "max_gap": 96}),
    "rotation alike": Arm("rotation", {"rotation": 30.0}),
    "rotation each": Arm("rotation", {"rotation": 30.0, "rotation_each": True}),
    "jittered": Arm("pairing", {"pairing": "jittered"}),
    "second later": Arm("second frame", {"second": "later"}),
    "still": Arm("what is hidden", {"mask_strategy": "still"}),
    "uncertain": Arm("what is hidden", {"mask_strategy": "uncertain"}),
    "4 futures": Arm("futures", {"futures": 4, "repeated_sampling": 1}),
    "mask 90 %": Arm("mask ratio", {"mask_ratio": 0.90}),
    "mask 98 %": Arm("mask ratio", {"mask_ratio": 0.98}),
    "MAE, half as many steps more": Arm("one frame", {**_IMAGES, "epochs": 1.5}),  # times the base's
}  # fmt: skip


@dataclass(frozen=True)
class Measure:
    """A number of a run: its heading, where it stands in the run's scores, its decimals, and whether more is better."""

    heading: str
    place: tuple[str, ...]
    decimals: int
    more_is_better: bool


MEASURES = {
    "error 75": Measure("error, 75 % hidden", ("video", "0.75", "all", "model"), 3, False),
    "short": Measure("short gaps", ("video", "0.75", "short", "model"), 3, False),
    "long": Measure("long gaps", ("video", "0.75", "long", "model"), 3, False),
    "error 95": Measure("error, 95 % hidden", ("video", "0.95", "all", "model"), 3, False),
    "shift": Measure("shift 8 px", ("motion", "shift 8", "model"), 3, False),
    "hits": Measure("hits", ("motion", "shift 8", "exact hits"), 2, True),
    "J&F": Measure("J&F", ("J&F",), 1, True),
    "d_avg": Measure("δ_avg", ("d_avg",), 1, True),
    "minutes": Measure("core-minutes", ("minutes",), 1, False),
}


def base_config(preset_name: str, epochs: int) -> RunConfig:
    """What every arm stands on: the paper's pairs (95 % hidden, two of each video), in the size of a preset."""
    settings = dict(mask_ratio=0.95, repeated_sampling=2, workers=0, epochs=epochs, warmup_epochs=epochs / 10)
    return preset(preset_name).config.replace(**settings, visits=4, num_epochs_per_save=epochs, norm_pix_loss="yes")


def make_cell(base: RunConfig, arm: str, seed: int, about: Any) -> Cell:
    """One run of the study; its prefix follows from all that decides its numbers. about: the videos and weights."""
    if arm not in ARMS:
        raise InputError(f"arm {arm!r} is unknown; there are {', '.join(ARMS)}")
    changes = dict(ARMS[arm].changes)
    if "epochs" in changes:
        changes["epochs"] = round(base.optimisation.epochs * changes["epochs"])
        changes["num_epochs_per_save"] = changes["epochs"]
    config = base.replace(**changes, seed=seed)
    told_apart = [about, not ARMS[arm].weights, *([] if ARMS[arm].trained else ["untrained"])]
    return Cell({"arm": arm, "seed": seed}, config, prefix_of(base, config, told_apart))


def read_scores(path: Path) -> dict[str, Any] | None:
    """The scores of a run that is finished."""
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def read_results(path: Path) -> dict[str, Any]:
    """What `siammae study` left beside its report; an InputError for anything else."""
    try:
        study = json.loads(path.read_text(encoding="utf-8"))
        complete = bool(study["runs"]) and {"planned", "hours", "videos"} <= study.keys()
    except (ValueError, KeyError, TypeError):
        complete = False
    if not complete:
        raise InputError(f"{path} holds no results of a study: expected the .json beside a report of siammae study")
    return dict(study)


def number(scores: Mapping[str, Any], measure: Measure) -> float | None:
    """What a run's scores say of a measure; None where it has none."""
    found: Any = scores
    for name in measure.place:
        found = found.get(name) if isinstance(found, Mapping) else None
    return None if found is None else float(found)


@dataclass(frozen=True)
class Spread:
    """A measure over seeds."""

    values: tuple[float, ...]

    def text(self, decimals: int) -> str:
        """Mean ± standard deviation, the latter of several values."""
        mean, deviation = spread(self.values)
        return f"{mean:.{decimals}f}" + ("" if deviation is None else f" ± {deviation:.{decimals}f}")


def gather(runs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Spread]]:
    """By arm, in the order of `ARMS`, and by measure; only what was measured."""
    table: dict[str, dict[str, Spread]] = {}
    for arm in ARMS:
        mine = [run["scores"] for run in runs if run["arm"] == arm]
        found = {name: tuple(x for s in mine if (x := number(s, m)) is not None) for name, m in MEASURES.items()}
        if mine:
            table[arm] = {name: Spread(values) for name, values in found.items() if values}
    return table


def verdict(better: Spread, worse: Spread, measure: Measure) -> str:
    """Whether the first is better than the second: `yes` or `no` only where each has two seeds at least and no seed of
    one reaches into the other's; otherwise `not told apart`."""
    sign = 1 if measure.more_is_better else -1
    first, second = ([sign * x for x in s.values] for s in (better, worse))
    if min(len(first), len(second)) > 1 and min(first) > max(second):
        return "yes"
    if min(len(first), len(second)) > 1 and max(first) < min(second):
        return "no"
    return "not told apart"
