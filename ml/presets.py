"""Named runs: what `siammae train --preset NAME` does. Imports no torch."""

from dataclasses import dataclass
from pathlib import Path

from common.errors import InputError
from ml.config import RunConfig


@dataclass(frozen=True)
class Preset:
    """A named run: its configuration, and what it is for."""

    config: RunConfig
    about: str
    weights: str | None = None
    """to start from: public MAE weights (a name of mae.weights.PUBLIC_WEIGHTS), or a file that ships in checkpoints/;
    None: from nothing"""

    @property
    def how_to_get_weights(self) -> str:
        """What to type."""
        if str(self.weights).endswith(".pt"):
            return f"--weights checkpoints/{self.weights}, which comes with the repository"
        return f"siammae weights {self.weights}, then --weights weights/"

    def starting_weights(self, *roots: Path) -> Path | None:
        """The file in `weights/` or `checkpoints/` below the first of the roots that has it, if one has."""
        places = [root / folder / str(self.weights) for root in roots for folder in ("weights", "checkpoints")]
        return next((place for place in places if self.weights and place.is_file()), None)


_DEFAULT = RunConfig()
_MICRO = _DEFAULT.replace(
    model="siammae_micro_patch8", image_size=64, batch_size=8, base_lr=1e-3 * 256 / 8, epochs=160, warmup_epochs=8,
    workers=1, num_epochs_per_save=40,
)  # fmt: skip

# `pairs_per_device` is what a GPU with 80 GB holds (`ml.memory.pairs_that_fit`); a smaller one takes
# `--pairs-per-device auto`. The paper's recipe (Gupta et al. 2023, §4.1 and appendix; 1024 videos × 2 pairs a step).
_PAPER = _DEFAULT.replace(
    model="siammae_small_patch16", batch_size=2048, pairs_per_device=1024, epochs=400, warmup_epochs=40
)
# The user's runs: around the public MAE weights, 60 epochs.
_FROM_MAE = _DEFAULT.replace(
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
        _PAPER.replace(model="siammae_small_patch8", pairs_per_device=256),
        "the paper's ViT-S/8: four times the patches",
    ),
    # siammae train --preset mae_base_75 --data VIDEOS --weights weights/ · one GPU with 24 GB
    "mae_base_50": Preset(_FROM_MAE.replace(mask_ratio=0.50), "ViT-B/16 around the MAE weights, 50 % hidden", _BASE),
    "mae_base_75": Preset(_FROM_MAE.replace(mask_ratio=0.75), "ViT-B/16 around the MAE weights, 75 % hidden", _BASE),
    "mae_base_95": Preset(_FROM_MAE.replace(mask_ratio=0.95), "ViT-B/16 around the MAE weights, 95 % hidden", _BASE),
    # siammae train --preset mae_large_75 --data VIDEOS --weights weights/ · one GPU with 24 GB
    "mae_large_75": Preset(
        _FROM_MAE.replace(model="siammae_large_patch16", mask_ratio=0.75),
        "ViT-L/16 around the MAE weights, 75 % hidden", _LARGE,
    ),
    # torchrun --nproc-per-node 8 -m cli.main train --preset mae_st_large --data KINETICS · GPUs with 80 GB, half
    # full: a batch of 128 clips has 308 MB, of which each loader process holds two; the paper trained on 128 GPUs
    "mae_st_large": Preset(
        _DEFAULT.replace(
            model="mae_st_large_patch16", clip_frames=16, stride=4, mask_ratio=0.9, repeated_sampling=4,
            batch_size=2048, pairs_per_device=128, base_lr=1.6e-3, epochs=100, warmup_epochs=5, clip_grad=0.02,
        ),
        "the spatiotemporal MAE, ViT-L/16 on clips of 16 frames: its paper's recipe",
    ),
}  # fmt: skip


def _smoke_twin(full: RunConfig) -> RunConfig:
    """The same recipe in a size that a laptop finishes in half a minute: two epochs of a tiny model, on up to four
    processes."""
    tiny = dict(model="mae_st_micro_patch8", clip_frames=8) if full.of_clips else dict(model="siammae_micro_patch8")
    repeated = full.data.repeated_sampling
    return full.replace(
        **tiny, image_size=64, batch_size=4 * repeated, pairs_per_device=2 * repeated, visits=2, epochs=2,
        warmup_epochs=2 * full.optimisation.warmup_epochs / full.optimisation.epochs, num_epochs_per_save=2, workers=0,
    )  # fmt: skip


PRESETS: dict[str, Preset] = {
    # siammae train --preset micro --data VIDEOS · 2 CPU cores, half an hour for 20,000 steps · see LOG.md, `make learn`
    "micro": Preset(_MICRO, "a model of 2 million parameters on 64×64 pixels that learns on a laptop"),
    # make demo · 2 CPU cores, under a minute for each mask ratio, on the four built-in clips
    "demo": Preset(
        _MICRO.replace(
            image_size=96,
            norm_pix_loss="no",
            decoder_kind="rotary",
            epochs=2,
            warmup_epochs=1,
            visits=8,
            repeated_sampling=8,
            batch_size=16,
            base_lr=2e-4 * 256 / 16,
            num_epochs_per_save=2,
            seed=2,  # the pair that the pictures show comes first: a man who turns, not a cut between two scenes
        ),
        "the notebook's size: from the shipped weights, three mask ratios in minutes on a CPU",
        "siammae_mini.pt",
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
        f"{name}_smoke": Preset(_smoke_twin(full.config), f"the recipe of {name} in seconds", full.weights)
        for name, full in _FULL.items()
    },
}


def preset(name: str) -> Preset:
    """A preset by its name; an InputError that lists the names otherwise."""
    if name not in PRESETS:
        raise InputError(f"preset {name!r} is unknown; there are {', '.join(PRESETS)}")
    return PRESETS[name]
