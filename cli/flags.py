"""Settings as words of a command line, and the other way round: the options that decide the defaults of others."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import tyro

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
