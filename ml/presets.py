"""Configurations as values: a run is a named preset, and what the command line offers follows from these fields."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from common.errors import InputError
from mae.masking import MaskKind, visible_count
from ml.SiamMAE import DecoderKind, EncoderKind

_OF_CLIPS = ("mask_kind", "stride")


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a training run, checked where it is made."""

    model: str = "siammae_small_patch16"
    """one of ml.SiamMAE.MODELS"""
    mask_ratio: float = 0.95
    """share of f2's patches, or of a clip's tubelets, that is hidden"""
    encoder_kind: EncoderKind = "siamese"
    """siamese: each frame by itself; joint: both frames' tokens together"""
    decoder_kind: DecoderKind = "cross-self"
    """cross-self: cross-attention to f1, self-attention, MLP; cross: no self-attention; joint: over both frames"""
    mask_kind: MaskKind = "agnostic"
    """of a clip's tubelets, which ones: anywhere, tubes, whole frames, the future (prospective), the past"""
    clip_frames: int = 0
    """frames of a clip, for the models of clips (MAE-ST); 0: pairs"""
    stride: float = 4
    """thirtieths of a second between the frames of a clip"""
    image_size: int = 224
    """side of the square crop in pixels"""
    min_gap: int = 4
    """smallest gap between f1 and f2, in thirtieths of a second"""
    max_gap: int = 48
    """largest gap, itself included"""
    rotation: float = 0.0
    """both frames turned by up to so many degrees either way"""
    repeated_sampling: int = 2
    """pairs from each opened video"""
    futures: int = 1
    """futures of each past, which is read once for all of them"""
    visits: int = 1
    """how often an epoch visits each video: more than 1 for a handful of videos"""
    batch_size: int = 256
    """pairs in a step, over all devices"""
    pairs_per_device: int = 0
    """how many of them one device takes at once, the others in turn; 0: its whole share"""
    epochs: int = 400
    warmup_epochs: float = 40
    base_lr: float = 1.5e-4
    """peak learning rate per 256 pairs in a step"""
    weight_decay: float = 0.05
    layer_decay: float = 1.0
    """each layer of the encoder learns with this times the rate of the one above it; 1: all alike"""
    clip_grad: float = 0.0
    """largest norm of the gradients; 0: not clipped"""
    ema: float = 0.0
    """decay of averaged weights that are kept beside the trained ones; 0: none"""
    decoder_float32: bool = False
    """compute the decoder in full precision where the rest is in bfloat16"""
    checkpointing: bool = False
    """keep less for the backward pass and compute it again: less memory, a third more time"""
    compile: bool = False
    """torch.compile"""
    seed: int = 0
    workers: int = 8
    """processes that decode, for each device; 0: the training process itself"""
    num_epochs_per_save: int = 10
    """epochs between the checkpoints that are kept"""
    save_minutes: float = 15.0
    """minutes between the states that an interrupted run goes on from"""
    skip_nonfinite: int = 0
    """steps with a loss that is no number that are left out before the run ends"""
    score_epochs: int = 10
    """epochs between two scores by label propagation, where they are asked for"""

    def __post_init__(self) -> None:
        visible_count(1, self.mask_ratio)
        ones = ("image_size", "min_gap", "repeated_sampling", "futures", "visits", "batch_size", "epochs")
        least = {**dict.fromkeys(ones, 1), "num_epochs_per_save": 1, "score_epochs": 1}
        for name, value in vars(self).items():
            lowest = least.get(name, 0)
            if isinstance(value, float | int) and not lowest <= value < 2**63:  # false for NaN, too
                raise InputError(f"{name} is {value}; expected at least {lowest} and less than 2^63")
        if self.max_gap < self.min_gap:
            raise InputError(f"max_gap {self.max_gap} is smaller than min_gap {self.min_gap}")
        for name, value in (("batch_size", self.batch_size), ("pairs_per_device", self.pairs_per_device)):
            if value % self.pairs_per_visit:
                raise InputError(
                    f"{name} {value} does not divide by repeated_sampling × futures, {self.pairs_per_visit}: all pairs "
                    "of a visit to a video go into one step"
                )
        if (self.clip_frames > 0) != self.of_clips:
            raise InputError(
                f"clip_frames is {self.clip_frames} and the model {self.model}: models of clips (mae_st_…) want clips, "
                "such as 16 frames, and models of pairs want 0"
            )
        others = ("encoder_kind", "decoder_kind", "min_gap", "max_gap", "futures") if self.of_clips else _OF_CLIPS
        for name in others:
            if getattr(self, name) != getattr(RunConfig, name):
                kind = "clips" if self.of_clips else "pairs"
                raise InputError(
                    f"{name} is {getattr(self, name)}; it means nothing to {self.model}, a model of {kind}"
                )
        if not 0 <= self.warmup_epochs <= self.epochs:
            raise InputError(f"warmup_epochs is {self.warmup_epochs}; expected 0 to epochs, which is {self.epochs}")
        if not 0 < self.layer_decay <= 1 or not 0 <= self.ema < 1:
            raise InputError(f"layer_decay {self.layer_decay} must lie in (0, 1], and ema {self.ema} in [0, 1)")

    @property
    def of_clips(self) -> bool:
        """Whether the model is one of clips (MAE-ST), not of pairs."""
        return self.model.startswith("mae_st")

    @property
    def pairs_per_visit(self) -> int:
        """Pairs (or clips) that one visit to a video gives."""
        return self.repeated_sampling * self.futures

    def shares(self, world_size: int) -> tuple[int, int]:
        """For so many processes: samples in a batch of the loader of each, and how many batches make its step.

        A sample is a past with its futures. An InputError where the step's pairs cannot be divided so.
        """
        share = self.batch_size // world_size
        at_once = min(self.pairs_per_device or share, share)
        if self.batch_size % world_size or share % at_once or at_once % self.pairs_per_visit:
            raise InputError(
                f"{self.batch_size} pairs in a step do not divide over {world_size} processes into batches of "
                f"{at_once} with {self.pairs_per_visit} pairs from each visit to a video: change batch_size or "
                "pairs_per_device"
            )
        return at_once // self.futures, share // at_once

    @property
    def peak_lr(self) -> float:
        """The linear rule of MAE, appendix A: base learning rate × pairs in a step / 256.

        MAE-ST does not count the repetitions of a video in it (Feichtenhofer et al. 2022, appendix A).
        """
        return self.base_lr * self.batch_size / 256 / (self.repeated_sampling if self.of_clips else 1)

    @property
    def dataset_arguments(self) -> dict[str, Any]:
        """The keyword arguments of `dataset_loader.get_kinetics_dataset` that this configuration decides."""
        names = ("image_size", "min_gap", "max_gap", "rotation", "repeated_sampling", "futures", "visits", "seed")
        clips = dict(clip_frames=self.clip_frames, stride=self.stride) if self.of_clips else {}
        return {**{name: getattr(self, name) for name in names}, **clips}

    @property
    def model_arguments(self) -> dict[str, Any]:
        """The keyword arguments of `ml.SiamMAE.build_model` that this configuration decides, beside the name."""
        kinds = ("mask_kind",) if self.of_clips else ("encoder_kind", "decoder_kind")
        names = ("mask_ratio", *kinds, "checkpointing", "decoder_float32")
        return {name: getattr(self, name) for name in names}

    @property
    def train_arguments(self) -> dict[str, Any]:
        """The keyword arguments of `ml.utils.train` that this configuration decides."""
        names = (
            "epochs", "num_epochs_per_save", "base_lr", "warmup_epochs", "weight_decay", "layer_decay", "clip_grad",
            "ema", "compile", "save_minutes", "skip_nonfinite", "score_epochs",
        )  # fmt: skip
        base_lr = self.peak_lr * 256 / self.batch_size  # per pair, whatever is counted as one
        return {**{name: getattr(self, name) for name in names}, "base_lr": base_lr, "config": dataclasses.asdict(self)}

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

# The paper's recipe (FACTS: Gupta et al. 2023, §4.1 and appendix; 1024 videos × 2 pairs a step), on any number of GPUs.
_PAPER = RunConfig(model="siammae_small_patch16", batch_size=2048, pairs_per_device=256, epochs=400, warmup_epochs=40)
# The user's runs: around the public MAE weights, 60 epochs.
_FROM_MAE = RunConfig(
    model="siammae_base_patch16", batch_size=64, epochs=60, warmup_epochs=5, repeated_sampling=2
)  # fmt: skip
_BASE, _LARGE = "mae_visualize_vit_base.pth", "mae_visualize_vit_large.pth"

# Times of full size are reckoned, not measured, and of the arithmetic alone: 35 GFLOP a pair (S/16) at 40 % of the
# 990 TFLOP/s of an H100, 480,000 pairs in an epoch of Kinetics-400. The loader must keep up: prepare packed shards.
_FULL: dict[str, Preset] = {
    # torchrun --nproc-per-node 8 -m cli.main train --preset paper_small_16 --data KINETICS · 8 GPUs · reckoned: 0.6 h
    "paper_small_16": Preset(_PAPER, "the paper's ViT-S/16, 400 epochs, as in its ablations"),
    # torchrun --nproc-per-node 8 -m cli.main train --preset paper_small_16_2000 --data KINETICS · reckoned: 3 h
    "paper_small_16_2000": Preset(_PAPER.replace(epochs=2000), "the paper's ViT-S/16, 2000 epochs, as in its tables"),
    # torchrun --nproc-per-node 8 -m cli.main train --preset paper_small_8 --data KINETICS · reckoned: 3 h
    "paper_small_8": Preset(
        _PAPER.replace(model="siammae_small_patch8", pairs_per_device=64), "the paper's ViT-S/8: four times the patches"
    ),
    # siammae train --preset mae_base_75 --data VIDEOS --weights weights/ · one GPU with 24 GB
    "mae_base_50": Preset(_FROM_MAE.replace(mask_ratio=0.50), "ViT-B/16 around the MAE weights, 50 % hidden", _BASE),
    "mae_base_75": Preset(_FROM_MAE.replace(mask_ratio=0.75), "ViT-B/16 around the MAE weights, 75 % hidden", _BASE),
    "mae_base_95": Preset(_FROM_MAE.replace(mask_ratio=0.95), "ViT-B/16 around the MAE weights, 95 % hidden", _BASE),
    # siammae train --preset mae_large_75 --data VIDEOS --weights weights/ · one GPU with 40 GB
    "mae_large_75": Preset(
        _FROM_MAE.replace(model="siammae_large_patch16", mask_ratio=0.75, pairs_per_device=32),
        "ViT-L/16 around the MAE weights, 75 % hidden", _LARGE,
    ),
    # torchrun --nproc-per-node 8 -m cli.main train --preset mae_st_large --data KINETICS · GPUs with 40 GB or more; the
    # paper trained on 128 of them
    "mae_st_large": Preset(
        RunConfig(
            model="mae_st_large_patch16", clip_frames=16, stride=4, mask_ratio=0.9, repeated_sampling=4,
            batch_size=2048, pairs_per_device=16, base_lr=1.6e-3, epochs=100, warmup_epochs=5, clip_grad=0.02,
        ),
        "the spatiotemporal MAE, ViT-L/16 on clips of 16 frames: its paper's recipe",
    ),
}  # fmt: skip


def _smoke_twin(full: RunConfig) -> RunConfig:
    """The same recipe in a size that a laptop finishes in half a minute: two epochs of a tiny model, on up
    to four processes."""
    tiny = dict(model="mae_st_micro_patch8", clip_frames=8) if full.of_clips else dict(model="siammae_micro_patch8")
    return full.replace(
        **tiny, image_size=64, batch_size=4 * full.repeated_sampling, visits=2, epochs=2,
        pairs_per_device=2 * full.repeated_sampling,
        warmup_epochs=2 * full.warmup_epochs / full.epochs, num_epochs_per_save=1, workers=0,
    )  # fmt: skip


PRESETS: dict[str, Preset] = {
    # siammae train --preset micro --data VIDEOS · 2 CPU cores, half an hour for 20,000 steps · see LOG.md, `make learn`
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
    # siammae train --preset mae_st_micro --data VIDEOS · 2 CPU cores · see LOG.md
    "mae_st_micro": Preset(
        _MICRO.replace(
            model="mae_st_micro_patch8", clip_frames=8, mask_ratio=0.9, repeated_sampling=4, base_lr=4e-3 * 256 / 8
        ),
        "the spatiotemporal MAE in a size that learns on a laptop: clips of 8 frames, 64×64 pixels",
    ),
    **_FULL,
    **{
        f"{name}_smoke": Preset(_smoke_twin(full.config), f"the recipe of {name} in seconds")
        for name, full in _FULL.items()
    },
}


def preset(name: str) -> Preset:
    """A preset by its name; an InputError that lists the names otherwise."""
    if name not in PRESETS:
        raise InputError(f"preset {name!r} is unknown; there are {', '.join(PRESETS)}")
    return PRESETS[name]
