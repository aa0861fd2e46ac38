"""Flags that several commands have, and settings as words of a command line."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, Union

import tyro

if TYPE_CHECKING:
    from evaluation.controls import Tracker
    from evaluation.features import Source

Options = TypeVar("Options")


def read_first(kind: type[Options], argv: Sequence[str]) -> Options:
    """The options of a dataclass, wherever they stand among others on the line."""
    chosen, _ = tyro.cli(kind, args=argv, add_help=False, return_unknown_args=True)
    return chosen


def flags(settings: Mapping[str, Any]) -> list[str]:
    """`--mask-ratio 0.5 --compile --no-checkpointing` from fields and values; None and () are left out."""
    words: list[str] = []
    for name, value in settings.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, tuple):
            words += [f"--{flag}", *map(str, value)] if value else []
        elif value is not None:
            words += [f"--{flag}", str(value)]
    return words


def subcommands(kinds: Mapping[str, type]) -> Any:
    """The type of an argument that is one of these by name: a subcommand for each, whose fields are its flags."""
    return Union[  # noqa: UP007
        tuple(Annotated[kind, tyro.conf.subcommand(name, prefix_name=False)] for name, kind in kinds.items())
    ]


@dataclass(frozen=True)
class Features:
    """Where features come from, and how they are computed."""

    source: str = "siammae_micro_64"
    """a run, <run>/<epoch>, any file or folder of weights (siammae weights inspect FILE tells what it is),
    untrained:CHECKPOINT, pixels, random, mae:PATH, mae_st:PATH, one_tubelet:MAE-ST, timm:NAME, timm:NAME@FILE,
    jax:FILE, decoder:RUN (its cross-attention), centred:SOURCE (each frame's mean subtracted); eval also takes a
    control: copy, oracle, oracle:SOURCE (oracle alone: the features of pixels)"""
    batch: int | None = None
    """frames to encode at once; it never changes the protocol; default: 8 on a CUDA device, 1 elsewhere"""
    root: Path = Path()
    """folder that holds checkpoints/"""
    device: str | None = None
    """cuda, mps, cpu; default: the best there is"""
    half: bool = False
    """let the network compute in 16 bits on a GPU"""

    @property
    def where(self) -> str:
        """The device that it means here."""
        from ml.devices import best_device

        return str(best_device(self.device))

    @property
    def at_once(self) -> int:
        """The batch that it means here."""
        from common.errors import InputError

        if self.batch is not None and self.batch < 1:
            raise InputError(f"a batch of {self.batch} frames: expected at least 1")
        return self.batch or (8 if self.on_cuda else 1)

    @property
    def on_cuda(self) -> bool:
        return self.where.startswith("cuda")

    def open(self) -> "Tracker":
        """A source of features, or a control. On a CUDA device matrix products are computed in TF32 from then on."""
        from cli.feature_sources import open_source

        if self.on_cuda:
            import torch

            torch.set_float32_matmul_precision("high")
        return open_source(self.source, self.root, self.where, self.half)

    def open_source(self) -> "Source":
        """A source of features; an InputError for a control."""
        from common.errors import InputError
        from evaluation.features import Source

        opened = self.open()
        if not isinstance(opened, Source):
            raise InputError(f"{self.source} is a control of `siammae eval`; this command takes a source of features")
        return opened
