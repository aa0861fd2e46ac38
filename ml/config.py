"""What decides a run, as one value in four sections, checked where it is made. Imports no torch.

A field has one name everywhere: `--mask-ratio` on the command line, `mask_ratio=0.5` in a grid, "mask_ratio" in the
JSON beside a run and in its checkpoints. So no two sections share a name, and the saved form is flat.
"""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_type_hints

from common.errors import InputError
from mae.schedule import Schedule

# The names that `ml.SiamMAE.DECODERS`, `mae.masking.MASKINGS`, `mae.patches.LOSSES` and
# `ml.extensions.hiding.STRATEGIES` register; a test compares them.
EncoderKind = Literal["siamese", "joint"]
DecoderKind = Literal["cross-self", "cross", "joint", "rotary"]
MaskKind = Literal["agnostic", "tube", "frame", "prospective", "retrospective"]
LossKind = Literal["mse", "l1"]
MaskStrategy = Literal["random", "hard", "uncertain", "motion", "still"]


class Section:
    """A part of the configuration, which checks it: every number must reach the `LEAST` of its field (default 0) and be
    finite."""

    LEAST: Mapping[str, float] = {}

    def check(self) -> None:
        for name, value in vars(self).items():
            least = self.LEAST.get(name, 0)
            if isinstance(value, float | int) and not least <= value < 2**63:  # false for NaN, too
                raise InputError(f"{name} is {value}; expected at least {least} and less than 2^63")


@dataclass(frozen=True)
class ModelSection(Section):
    model: str = "siammae_small_patch16"
    """one of ml.SiamMAE.MODELS"""
    mask_ratio: float = 0.95
    """share of f2's patches, or of a clip's tubelets, that is hidden"""
    encoder_kind: EncoderKind = "siamese"
    """siamese: each frame on its own; joint: both frames' tokens together"""
    decoder_kind: DecoderKind = "cross-self"
    """cross-self: cross-attention to f1, self-attention, MLP; cross: no self-attention; joint: over both frames"""
    decoder_embed_dim: int = 0
    """width of the decoder; 0: that of the named model. A decoder of another size starts untrained"""
    decoder_depth: int = 0
    """its blocks; 0: as many as the named model has"""
    decoder_num_heads: int = 0
    """its attention heads; 0: as many as the named model has"""
    loss: LossKind = "mse"
    """error on hidden patches: squared or absolute"""
    norm_pix_loss: Literal["auto", "yes", "no"] = "auto"
    """predict each patch normalised by its own mean and spread; auto: as the starting weights do, without any yes"""
    mask_kind: MaskKind = "agnostic"
    """which of a clip's tubelets are hidden: any, tubes, whole frames, the future (prospective), the past"""
    mask_strategy: MaskStrategy = "random"
    """which of f2's patches are hidden in training: random ones; or by and by half of them those with the largest error
    as a head guesses it (hard), the most uncertain, those that moved most (motion), or least (still, its control)"""
    decoder_float32: bool = False
    """compute the decoder in full precision where the rest is in bfloat16"""
    checkpointing: bool = False
    """keep less for the backward pass and compute it again: less memory, a third more time"""

    def check(self) -> None:
        super().check()
        if not 0 <= self.mask_ratio < 1:
            raise InputError(f"a mask ratio of {self.mask_ratio} is not in [0, 1); write 0.95 for 95 %")


@dataclass(frozen=True)
class DataSection(Section):
    LEAST = dict.fromkeys(("image_size", "min_gap", "repeated_sampling", "futures", "visits"), 1)

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
    """both frames turned by up to so many degrees either way, alike"""
    rotation_each: bool = False
    """each frame by an angle of its own"""
    pairing: str = "video"
    """what makes a pair: video, jittered, video_shifted, shifted, shifted_patches, crops, crops_reversed, or
    mixed:NAME=SHARE,…"""
    schedule: str = ""
    """a curriculum, in place of pairing and mask_ratio: 'EPOCH PAIRING [MASK_RATIO]; …' (mae/schedule.py)"""
    repeated_sampling: int = 2
    """pairs from each opened video"""
    futures: int = 1
    """futures of each past, which is encoded once for all of them"""
    second: Literal["none", "past", "later"] = "none"
    """a second frame that the decoder reads: another past, or one later than f2 (so that f2 lies between them)"""
    visits: int = 1
    """how often an epoch visits each video: more than 1 for a handful of videos"""
    fps: float = 30
    """rate of numbered pictures that have no times beside them"""
    template: str = ""
    """which pictures of folders that hold several kinds, such as img_{:05d}.jpg beside flow_x_{:05d}.jpg"""

    def check(self) -> None:
        super().check()
        if self.schedule:
            Schedule.parse(self.schedule)
        if self.second != "none" and self.futures > 1:
            raise InputError(f"second is {self.second}, with futures {self.futures}: two frames have one f2, futures 1")
        if self.max_gap < self.min_gap:
            raise InputError(f"max_gap {self.max_gap} is smaller than min_gap {self.min_gap}")

    @property
    def frames(self) -> int:
        """Frames of a sample."""
        return self.clip_frames or 1 + (self.second != "none") + self.futures

    @property
    def pairs_per_visit(self) -> int:
        """Pairs (or clips) that one visit to a video gives."""
        return self.repeated_sampling * self.futures


@dataclass(frozen=True)
class OptimisationSection(Section):
    LEAST = dict(batch_size=1, epochs=1)

    batch_size: int = 256
    """pairs in a step, over all devices"""
    pairs_per_device: int | Literal["auto"] = 0
    """how many of them a device takes at once; it accumulates gradients over the rest. 0: its whole share; auto: as
    many as fit into its memory"""
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
    """decay of the averaged weights (EMA) kept beside the trained ones; 0: none"""

    def check(self) -> None:
        super().check()
        if not 0 <= self.warmup_epochs <= self.epochs:
            raise InputError(f"warmup_epochs is {self.warmup_epochs}; expected 0 to epochs, which is {self.epochs}")
        if not 0 < self.layer_decay <= 1 or not 0 <= self.ema < 1:
            raise InputError(f"layer_decay {self.layer_decay} must lie in (0, 1], and ema {self.ema} in [0, 1)")

    @property
    def pairs_at_once(self) -> int:
        """`pairs_per_device`; 0, too, where `auto` has not been worked out (`ml.memory`)."""
        return 0 if self.pairs_per_device == "auto" else self.pairs_per_device


@dataclass(frozen=True)
class RunSection(Section):
    LEAST = dict(num_epochs_per_save=1, score_epochs=1)

    seed: int = 0
    workers: int = 8
    """processes that decode, for each device; 0: the training process itself"""
    compile: bool = False
    """torch.compile, block by block"""
    cuda_graphs: bool = False
    """compile the whole model in place of that, and replay it as CUDA graphs (mode reduce-overhead): for one GPU, and a
    step that is one batch"""
    num_epochs_per_save: int = 10
    """epochs between the checkpoints that are kept"""
    save_minutes: float = 15.0
    """minutes between the states from which an interrupted run resumes"""
    skip_nonfinite: int = 0
    """steps with a loss or gradient of NaN or infinity that are skipped before the run ends"""
    score_epochs: int = 10
    """epochs between two scores by label propagation, if --score-data is given"""


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a training run."""

    model: ModelSection = field(default_factory=ModelSection)
    data: DataSection = field(default_factory=DataSection)
    optimisation: OptimisationSection = field(default_factory=OptimisationSection)
    run: RunSection = field(default_factory=RunSection)

    def __post_init__(self) -> None:
        for part in (self.model, self.data, self.optimisation, self.run):
            part.check()  # here, not there: tyro would make a box of an error there
        for name, value in (
            ("batch_size", self.optimisation.batch_size),
            ("pairs_per_device", self.optimisation.pairs_at_once),
        ):
            if value % self.data.pairs_per_visit:
                raise InputError(
                    f"{name} {value} does not divide by repeated_sampling × futures, {self.data.pairs_per_visit}: all "
                    "pairs of a visit to a video go into one step"
                )
        kind, others = ("clips", _OF_PAIRS) if self.of_clips else ("pairs", _OF_CLIPS)
        for part in (self.model, self.data):
            for name in vars(part).keys() & others:
                if getattr(part, name) != getattr(type(part), name):  # its default
                    raise InputError(
                        f"{name} is {getattr(part, name)}; it means nothing to {self.model.model}, a model of {kind} "
                        f"(clip_frames is {self.data.clip_frames})"
                    )

    @property
    def of_clips(self) -> bool:
        """Whether samples are clips, not pairs."""
        return self.data.clip_frames > 0

    def shares(self, world_size: int) -> tuple[int, int]:
        """For so many processes: samples in a batch of the loader of each, and how many batches make its step.

        A sample is a past with its futures. An InputError where the step's pairs cannot be divided so.
        """
        total, per_visit = self.optimisation.batch_size, self.data.pairs_per_visit
        share = total // world_size
        at_once = min(self.optimisation.pairs_at_once or share, share)
        if total % world_size or share % at_once or at_once % per_visit:
            raise InputError(
                f"{total} pairs in a step do not divide over {world_size} processes into batches of {at_once} with "
                f"{per_visit} pairs from each visit to a video: change batch_size or pairs_per_device"
            )
        return at_once // self.data.futures, share // at_once

    @property
    def peak_lr(self) -> float:
        """The linear rule of MAE, appendix A: base learning rate × pairs in a step / 256.

        MAE-ST does not count the repetitions of a video in it (Feichtenhofer et al. 2022, appendix A).
        """
        lr = self.optimisation.base_lr * self.optimisation.batch_size / 256
        return lr / (self.data.repeated_sampling if self.of_clips else 1)

    @property
    def dataset_arguments(self) -> dict[str, Any]:
        """The keyword arguments of `dataset_loader.get_kinetics_dataset` that this configuration decides."""
        clips = () if self.of_clips else ("clip_frames", "stride")
        values = {name: value for name, value in vars(self.data).items() if name not in clips}
        patch = re.search(r"patch(\d+)", self.model.model)  # by which some pairings shift
        return {**values, **({"patch_size": int(patch[1])} if patch else {}), "seed": self.run.seed}

    @property
    def model_arguments(self) -> dict[str, Any]:
        """The keyword arguments of `ml.SiamMAE.build_model` that this configuration decides, beside the name."""
        kinds = ("mask_kind",) if self.of_clips else ("encoder_kind", "decoder_kind", "mask_strategy")
        values = {name: getattr(self.model, name) for name in ("mask_ratio", *kinds, "loss", *_COMPUTING)}
        sizes = {name: size for name in _DECODER if (size := getattr(self.model, name))}
        sizes |= {"pasts": 2} if self.data.second != "none" else {}
        normalised = {"yes": {"norm_pix_loss": True}, "no": {"norm_pix_loss": False}}.get(self.model.norm_pix_loss, {})
        return {**values, **sizes, **normalised}

    @property
    def train_arguments(self) -> dict[str, Any]:
        """The keyword arguments of `ml.utils.train` that this configuration decides."""
        fields = {**vars(self.optimisation), **vars(self.run), "peak_lr": self.peak_lr, "config": self.flat()}
        fields["schedule"] = self.data.schedule
        return {name: value for name, value in fields.items() if name not in _NOT_OF_TRAIN}

    def flat(self) -> dict[str, Any]:
        """All fields by name: what is saved. `RunConfig().replace(**flat)` is the same again."""
        return {name: value for part in vars(self).values() for name, value in vars(part).items()}

    def replace(self, **changes: Any) -> "RunConfig":
        """The same with some fields changed, by their flat names (and checked again)."""
        unknown = sorted(changes.keys() - self.flat().keys())
        if unknown:
            raise InputError(f"{', '.join(unknown)} is no field of RunConfig; there are {', '.join(self.flat())}")
        parts = {
            name: dataclasses.replace(part, **{key: value for key, value in changes.items() if key in vars(part)})
            for name, part in vars(self).items()
        }
        return RunConfig(**parts)


def field_types() -> dict[str, Any]:
    """The type of each field, by its flat name."""
    sections = get_type_hints(RunConfig).values()
    return {name: kind for part in sections for name, kind in get_type_hints(part).items() if name != "LEAST"}


_OF_PAIRS = (
    "encoder_kind",
    "decoder_kind",
    "mask_strategy",
    "min_gap",
    "max_gap",
    "futures",
    "second",
    "pairing",
    "schedule",
)
_OF_CLIPS = ("mask_kind", "stride")
_COMPUTING = ("checkpointing", "decoder_float32")
_DECODER = ("decoder_embed_dim", "decoder_depth", "decoder_num_heads")
_NOT_OF_TRAIN = ("batch_size", "pairs_per_device", "base_lr", "seed", "workers")
