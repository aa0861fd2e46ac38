"""siammae train --data VIDEOS [--preset NAME] [--mask-ratio 0.95] …"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from common.errors import InputError
from dataset_loader import check_disjoint, get_kinetics_dataset, make_loader
from evaluation.benchmarks.davis import Davis
from evaluation.run import propagation_score
from mae.masking import visible_count
from ml.devices import keep_freed_memory
from ml.presets import PRESETS, RunConfig, preset
from ml.ranks import Strategy, join_ranks, leave_ranks
from ml.reporting import TrackerKind
from ml.SiamMAE import build_model
from ml.utils import leave_cores, train


@dataclass
class Arguments:
    """Train a model on the videos below a folder; everything else comes from the preset unless it is given."""

    data: Path
    """folder of videos in any container that FFmpeg reads, of packed shards or JPEG folders, a ledger, or a list"""
    preset: str = "micro"
    """where the defaults below come from"""
    test_data: Path | None = None
    """held-out videos, stored in any of these ways: refused if one of them is among the training videos"""
    score_data: Path | None = None
    """folder of DAVIS: follow its objects with the model every --score-epochs epochs"""
    score_year: Literal[2016, 2017] = 2017
    """of DAVIS"""
    score_sequences: tuple[str, ...] = ()
    """only these sequences of it"""
    score_size: str = "short240"
    """what their first 25 frames are resized to; otherwise the protocol is dino"""
    weights: Path | None = None
    """public MAE weights to start from: the file, or the folder where it lies (see `siammae weights`)"""
    resume: str = "auto"
    """a run to go on with, or <run>/<epoch> to rewind it to; auto: the unfinished run of this prefix and configuration,
    if there is one; once: the same, but a finished one is left alone and no other begun; none: begin a new one"""
    allow_changes: bool = False
    """go on although the configuration differs from that of the run"""
    prefix: str = ""
    """what the run's name begins with"""
    root: Path = Path()
    """folder that holds losses/ and checkpoints/"""
    tracker: TrackerKind = "none"
    """tensorboard: write its files too, into losses/tensorboard/; wandb: Weights & Biases, offline unless
    WANDB_MODE=online"""
    strategy: Strategy = "ddp"
    """under torchrun: ddp shares gradients, fsdp divides parameters and optimiser state as well"""
    device: str | None = None
    """cuda, mps, cpu; default: the best there is"""
    config: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=RunConfig)


def defaults(argv: list[str]) -> Arguments:
    """What holds where the command line is silent: everything from the preset that it names."""
    name = Arguments.preset
    for k, word in enumerate(argv):
        if word == "--preset" and k + 1 < len(argv):
            name = argv[k + 1]
        elif word.startswith("--preset="):
            name = word.partition("=")[2]
    return Arguments(data=tyro.MISSING, preset=name, config=preset(name).config)


def arguments(argv: list[str]) -> Any:
    """The function to call, with defaults from the preset that the arguments name."""
    default = defaults(argv)

    def main(arguments: Annotated[Arguments, tyro.conf.arg(name="")] = default) -> None:
        run(arguments)

    main.__doc__ = f"{Arguments.__doc__}\n\nPresets: " + "; ".join(f"{n}: {p.about}" for n, p in PRESETS.items())
    return main


def try_out(config: RunConfig) -> None:
    """One forward pass without numbers: raises now what would otherwise end the first step of a run."""
    with torch.device("meta"):
        model = build_model(config.model, **config.model_arguments)
        shape = 1, config.clip_frames or 1 + config.futures, 3, config.image_size, config.image_size
        _, _, mask = model(torch.empty(shape, dtype=torch.uint8), seeds=torch.empty(1, dtype=torch.long))
    if visible_count(mask.shape[1], config.mask_ratio) == mask.shape[1]:
        raise InputError(f"at a mask ratio of {config.mask_ratio} all {mask.shape[1]} patches stay visible: raise it")


def run(arguments: Arguments) -> str:
    """Train, and print where everything is; the run's name."""
    config = arguments.config
    try_out(config)
    ranks, device = join_ranks(arguments.device)
    if device.type == "cpu":
        keep_freed_memory()
    batch_size, accumulation = config.shares(ranks.world_size)
    share: dict[str, Any] = dict(rank=ranks.rank, world_size=ranks.world_size, pin_memory=device.type == "cuda")
    if arguments.test_data is not None:
        check_disjoint(arguments.data, arguments.test_data)
    public = preset(arguments.preset).weights
    if public and not arguments.weights and ranks.first:
        print(f"starting from nothing; for MAE weights: siammae weights {public}, then --weights weights/")
    torch.manual_seed(config.seed)
    weights = str(arguments.weights) if arguments.weights else None
    model = build_model(config.model, weights=weights, **config.model_arguments)
    dataset = get_kinetics_dataset(arguments.data, **config.dataset_arguments)
    loader = make_loader(dataset, batch_size, workers=config.workers, **share)
    validation = None
    if arguments.test_data is not None:
        fixed = {**config.dataset_arguments, "repeated_sampling": 1, "visits": 4}
        held_out = get_kinetics_dataset(arguments.test_data, augment=False, **fixed)
        shared = share if len(held_out) >= ranks.world_size else {}
        validation = make_loader(
            held_out, batch_size, workers=min(1, config.workers), shuffle=False, drop_last=False, **shared
        )
    score = None
    if arguments.score_data is not None:
        benchmark = Davis(arguments.score_data, arguments.score_year)
        rules = benchmark.protocol("dino", size=arguments.score_size)
        score = propagation_score(benchmark, rules, names=arguments.score_sequences, frames=25)
    if ranks.first:
        pairs, steps = len(dataset) * config.pairs_per_visit, len(loader) // accumulation
        print(
            f"{len(dataset.paths)} videos, {config.visits} visits to each in an epoch, {config.pairs_per_visit} pairs "
            f"a visit: {pairs} pairs, {steps} steps of {config.batch_size} pairs ({ranks.world_size} processes × "
            f"{accumulation} batches × {batch_size * config.futures}), on {device}"
        )
    if device.type == "cpu":
        leave_cores(config.workers)
    name = train(
        model, loader, prefix=arguments.prefix, device=device, resume=arguments.resume, root=arguments.root,
        tracker=arguments.tracker, allow_changes=arguments.allow_changes, strategy=arguments.strategy,
        accumulation=accumulation, validation=validation, score=score, **config.train_arguments,
    )  # fmt: skip
    if ranks.first:
        root = arguments.root
        print(f"losses: {root / 'losses' / name}.txt and .png; checkpoints: {root / 'checkpoints' / name}/")
    leave_ranks()
    return name
