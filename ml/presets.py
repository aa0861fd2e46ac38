"""Configurations as values: a run is a named preset, and what the command line offers follows from these fields."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from mae.files import InputError
from mae.masking import visible_count
from ml.SiamMAE import DecoderKind, EncoderKind


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a training run, checked where it is made."""

    model: str = "siammae_small_patch16"
    """one of ml.SiamMAE.MODELS"""
    mask_ratio: float = 0.95
    """share of f2's patches that is hidden"""
    encoder_kind: EncoderKind = "siamese"
    """siamese: each frame by itself; joint: both frames' tokens together"""
    decoder_kind: DecoderKind = "cross-self"
    """cross-self: cross-attention to f1, self-attention, MLP; cross: no self-attention; joint: over both frames"""
    image_size: int = 224
    """side of the square crop in pixels"""
    min_gap: int = 4
    """smallest gap between f1 and f2, in thirtieths of a second"""
    max_gap: int = 48
    """largest gap, itself included"""
    repeated_sampling: int = 2
    """pairs from each opened video"""
    visits: int = 1
    """how often an epoch visits each video: more than 1 for a handful of videos"""
    batch_size: int = 256
    """pairs in a step"""
    epochs: int = 400
    warmup_epochs: float = 40
    base_lr: float = 1.5e-4
    """peak learning rate per 256 pairs in a step"""
    weight_decay: float = 0.05
    seed: int = 0
    workers: int = 8
    """processes that decode; 0: the training process itself"""
    num_epochs_per_save: int = 10
    """epochs between the checkpoints that are kept"""

    def __post_init__(self) -> None:
        visible_count(1, self.mask_ratio)
        for name in (
            "image_size",
            "min_gap",
            "repeated_sampling",
            "visits",
            "batch_size",
            "epochs",
            "num_epochs_per_save",
        ):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; expected at least 1")
        if self.max_gap < self.min_gap:
            raise InputError(f"max_gap {self.max_gap} is smaller than min_gap {self.min_gap}")
        if self.batch_size % self.repeated_sampling:
            raise InputError(
                f"a batch of {self.batch_size} pairs does not divide by repeated_sampling {self.repeated_sampling}"
            )
        if not 0 <= self.warmup_epochs <= self.epochs:
            raise InputError(f"warmup_epochs is {self.warmup_epochs}; expected 0 to epochs, which is {self.epochs}")

    @property
    def peak_lr(self) -> float:
        """The linear rule of MAE, appendix A: base learning rate × pairs in a step / 256."""
        return self.base_lr * self.batch_size / 256

    @property
    def dataset_arguments(self) -> dict[str, Any]:
        """The keyword arguments of `dataset_loader.get_kinetics_dataset` that this configuration decides."""
        names = ("image_size", "min_gap", "max_gap", "repeated_sampling", "visits", "seed")
        return {name: getattr(self, name) for name in names}

    @property
    def model_arguments(self) -> dict[str, Any]:
        """The keyword arguments of `ml.SiamMAE.build_model` that this configuration decides, beside the name."""
        return {name: getattr(self, name) for name in ("mask_ratio", "encoder_kind", "decoder_kind")}

    @property
    def train_arguments(self) -> dict[str, Any]:
        """The keyword arguments of `ml.utils.train` that this configuration decides."""
        names = ("epochs", "num_epochs_per_save", "base_lr", "warmup_epochs", "weight_decay")
        return {**{name: getattr(self, name) for name in names}, "config": dataclasses.asdict(self)}

    def replace(self, **changes: Any) -> "RunConfig":
        """The same with some fields changed (and checked again)."""
        return dataclasses.replace(self, **changes)


@dataclass(frozen=True)
class Preset:
    """A named run: its configuration, and what it is for."""

    config: RunConfig
    about: str
    weights: str | None = field(default=None)
    """public MAE weights to start from, a name of mae.weights.PUBLIC_WEIGHTS; None: from nothing"""


_MICRO = RunConfig(
    model="siammae_micro_patch8", image_size=64, batch_size=8, base_lr=1e-3 * 256 / 8, epochs=160, warmup_epochs=8,
    workers=1, num_epochs_per_save=40,
)  # fmt: skip

PRESETS: dict[str, Preset] = {
    # siammae train --preset micro --data VIDEOS · 2 CPU cores, about an hour for 8,000 steps · see LOG.md, `make learn`
    "micro": Preset(_MICRO, "a model of 2 million parameters on 64×64 pixels that learns on a laptop"),
    # make demo · 2 CPU cores, two minutes for each mask ratio, on the four built-in clips
    "demo": Preset(
        _MICRO.replace(
            epochs=16, warmup_epochs=2, visits=16, repeated_sampling=8, batch_size=16, num_epochs_per_save=10
        ),
        "the notebook's size: three mask ratios in a few minutes on a CPU",
    ),
    # the tests · seconds
    "smoke": Preset(
        _MICRO.replace(epochs=2, warmup_epochs=1, repeated_sampling=4, visits=2, num_epochs_per_save=1, workers=0),
        "two short epochs: does everything run?",
    ),
    # siammae train --preset siammae_base --data VIDEOS · one GPU with 24 GB or more · not measured yet
    "siammae_base": Preset(
        RunConfig(model="siammae_base_patch16", mask_ratio=0.75, batch_size=64, epochs=60, warmup_epochs=5),
        "the user's run: ViT-B/16 around the public MAE weights, at 50, 75 and 95 %",
        weights="mae_visualize_vit_base.pth",
    ),
    # the same with ViT-L/16 · one GPU with 40 GB or more · not measured yet
    "siammae_large": Preset(
        RunConfig(model="siammae_large_patch16", mask_ratio=0.75, batch_size=32, epochs=60, warmup_epochs=5),
        "ViT-L/16 around the public MAE weights",
        weights="mae_visualize_vit_large.pth",
    ),
    # siammae train --preset siammae_small --data KINETICS · the paper's model from nothing; its batch of 2048
    # pairs and its 400 or 2000 epochs want a node of GPUs · not measured yet
    "siammae_small": Preset(RunConfig(batch_size=2048), "the paper's ViT-S/16 from nothing"),
}


def preset(name: str) -> Preset:
    """A preset by its name; an InputError that lists the names otherwise."""
    if name not in PRESETS:
        raise InputError(f"preset {name!r} is unknown; there are {', '.join(PRESETS)}")
    return PRESETS[name]
