"""siammae train --data VIDEOS [--preset NAME] [--mask-ratio 0.95] …"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from cli.flags import read_first
from common.errors import InputError
from common.words import counted
from ml.config import RunConfig
from ml.presets import PRESETS, preset


@dataclass
class Validation:
    """Held-out data to look at on the way."""

    test_data: Path | None = None
    """held-out videos, in any form that --data takes: refused if one of them is among the training videos"""
    score_data: Path | None = None
    """folder of DAVIS: follow its objects with the model every --score-epochs epochs"""
    score_year: Literal[2016, 2017] = 2017
    """of DAVIS"""
    score_sequences: tuple[str, ...] = ()
    """only these sequences of it"""
    score_size: str = "short240"
    """what their first 25 frames are resized to; otherwise the protocol is dino"""
    motion: bool = False
    """measure on windows of frames of --test-data, 8 and 16 pixels apart, whether the model finds what moved, every
    --score-epochs epochs"""


@dataclass
class Output:
    """Where the run writes."""

    root: Path = Path()
    """folder that holds losses/ and checkpoints/"""
    prefix: str = ""
    """what the run's name begins with"""
    tracker: Literal["none", "tensorboard", "wandb"] = "none"
    """tensorboard: write its files too, into losses/tensorboard/; wandb: Weights & Biases, offline unless
    WANDB_MODE=online"""


@dataclass
class Chosen:
    """What decides the defaults of all other options."""

    preset: str = "micro"


@dataclass
class Arguments:
    """Train a model on the videos below a folder; everything else comes from the preset unless it is given."""

    data: Path
    """folder of videos in any container that FFmpeg reads, of packed shards or JPEG folders, a ledger, or a list"""
    photos: Path | None = None
    """folder of single pictures beside the videos, for pairings of one frame"""
    preset: str = "micro"
    """where the defaults below come from"""
    weights: Path | None = None
    """weights to start from: any file or folder of weights of the same size (see `siammae weights inspect FILE`), or
    the folder where public MAE weights lie"""
    resume: str = "auto"
    """a run to resume, or <run>/<epoch> to rewind it to; auto: the unfinished run of this prefix and configuration, if
    there is one; once: the same, but if that run is finished, nothing is trained; none: begin a new run"""
    allow_changes: bool = False
    """resume although the configuration differs from that of the run"""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """under torchrun: ddp shares gradients, fsdp divides parameters and optimiser state as well"""
    device: str | None = None
    """cuda, mps, cpu; default: the best there is"""
    config: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=RunConfig)
    validation: Validation = field(default_factory=Validation)
    output: Output = field(default_factory=Output)


def arguments(argv: list[str]) -> Callable[..., None]:
    """The function to call, with defaults from the preset that the arguments name."""
    name = read_first(Chosen, argv).preset
    default = Arguments(data=tyro.MISSING, preset=name, config=preset(name).config)

    def main(
        arguments: Annotated[Arguments, tyro.conf.arg(name=""), tyro.conf.OmitArgPrefixes] = default,
    ) -> None:
        run(arguments)

    table = "\n".join(f"  {name:20}  {each.about}" for name, each in PRESETS.items() if not name.endswith("_smoke"))
    twins = "Those of full size have a twin, NAME_smoke: the same recipe with a tiny model, in seconds."
    main.__doc__ = f"{Arguments.__doc__}\n\nPresets:\n\n{table}\n\n{twins}"
    return main


def try_out(config: RunConfig) -> None:
    """One forward pass without numbers: raises now what would otherwise end the first step of a run."""
    import torch

    from ml.SiamMAE import build_model

    with torch.device("meta"):
        model = build_model(config.model.model, **config.model_arguments)
        shape = 1, config.data.frames, 3, config.data.image_size, config.data.image_size
        model(torch.empty(shape, dtype=torch.uint8), seeds=torch.empty(1, dtype=torch.long))


def run(arguments: Arguments) -> str:
    """Train, and print where everything is; the run's name."""
    import torch

    from cli.wiring import fixed_dataset, fixed_loader, training_loader
    from dataset_loader import check_disjoint
    from ml.devices import keep_freed_memory
    from ml.memory import with_pairs_that_fit
    from ml.ranks import join_ranks, leave_ranks
    from ml.SiamMAE import build_model
    from ml.utils import leave_cores, train

    config, validation, output = arguments.config, arguments.validation, arguments.output
    try_out(config)
    ranks, device = join_ranks(arguments.device)
    if device.type == "cpu":
        keep_freed_memory()
    config = with_pairs_that_fit(config, device, ranks)
    config.shares(ranks.world_size)
    share: dict[str, Any] = dict(rank=ranks.rank, world_size=ranks.world_size, pin_memory=device.type == "cuda")
    if validation.test_data is not None:
        check_disjoint(arguments.data, validation.test_data)
    named = preset(arguments.preset)
    if named.weights and not arguments.weights and ranks.first:
        print(f"starting from nothing; from weights: {named.how_to_get_weights}")
    torch.manual_seed(config.run.seed)
    weights = str(arguments.weights) if arguments.weights else None
    model = build_model(config.model.model, weights=weights, **config.model_arguments)
    loader, accumulation = training_loader(config, arguments.data, arguments.photos, **share)
    held_out = None
    if validation.test_data is not None:
        dataset = fixed_dataset(config, validation.test_data, visits=4)
        shared = share if len(dataset) >= ranks.world_size else {}
        held_out = fixed_loader(config, dataset, workers=min(1, config.run.workers), **shared)
    if ranks.first:
        videos, visits, per_visit = len(loader.dataset.paths), config.data.visits, config.data.pairs_per_visit
        pairs, steps = counted(videos * visits * per_visit, "pair"), counted(len(loader) // accumulation, "step")
        processes, batches = counted(ranks.world_size, "process"), counted(accumulation, "batch")
        print(
            f"{counted(videos, 'video')}, {counted(visits, 'visit')} to each in an epoch, "
            f"{counted(per_visit, 'pair')} a visit: {pairs}, {steps} of {config.optimisation.batch_size} pairs "
            f"({processes} × {batches} × {loader.batch_size * config.data.futures}), on {device}"
        )
    leave_cores(config.run.workers, device)
    name = train(
        model, loader, prefix=output.prefix, device=device, resume=arguments.resume, root=output.root,
        tracker=output.tracker, allow_changes=arguments.allow_changes, strategy=arguments.strategy,
        accumulation=accumulation, validation=held_out, score=score_of(config, validation), **config.train_arguments,
    )  # fmt: skip
    if ranks.first:
        print(
            f"losses: {output.root / 'losses' / name}.txt and .png; checkpoints: {output.root / 'checkpoints' / name}/"
        )
    leave_ranks()
    return name


def score_of(config: RunConfig, validation: Validation) -> Callable[[Any], dict[str, float]] | None:
    """The functions that follow DAVIS's objects with a model and measure motion, where that was asked for."""
    scores: list[Callable[[Any], dict[str, float]]] = []
    if validation.score_data is not None:
        from evaluation.benchmarks.davis import Davis
        from evaluation.run import propagation_score

        benchmark = Davis(validation.score_data, validation.score_year)
        rules = benchmark.protocol("dino", size=validation.score_size)
        scores.append(propagation_score(benchmark, rules, names=validation.score_sequences, frames=25))
    if validation.motion:
        from cli.motion import frames
        from ml.motion import SHIFTS, motion_score, shifted_pairs

        if validation.test_data is None or config.of_clips:
            raise InputError("--motion measures a model of pairs on held-out videos: give --test-data")
        images = frames(validation.test_data, config.data.image_size + 2 * max(SHIFTS), 64)
        scores.append(motion_score([shifted_pairs(images, shift, seed=shift) for shift in (8, 16)]))
    if not scores:
        return None
    return lambda model: {name: value for score in scores for name, value in score(model).items()}
