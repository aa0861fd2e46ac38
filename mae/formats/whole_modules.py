"""Whole pickled modules, read without their code: every class is an empty stand-in, and nothing is imported or run.

torch's restricted reader builds tensors and plain values, and refuses every other name that a pickle mentions. Here
each of these names gets a stand-in of its own, which takes whatever it is given and does nothing with it.
"""

import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mae.reading import pickle_opcodes

_MODULE = {"_parameters", "_modules"}  # attributes of every nn.Module


class StandIn:
    """Takes the place of a class, of a function, or of what they would have made."""

    def __new__(cls, *arguments: Any, **keywords: Any) -> "StandIn":
        return super().__new__(cls)

    def __init__(self, *arguments: Any, **keywords: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        """Keep attributes, for `_tensors` to find; of functools.partial and others the state is no dict."""
        if isinstance(state, tuple) and len(state) == 2 and isinstance(state[0], dict):
            state = state[0]
        if isinstance(state, dict):
            self.__dict__.update(state)


def read_whole_module(path: Path) -> dict[str, Any] | None:
    """What torch.save wrote of a module, or of a dict with modules in it, each as a state dict; None of another file.

    The plain attributes of a module, by their dotted names, are put under "config".
    """
    try:
        opcodes = pickle_opcodes(path)
        words = {word for _, word in opcodes if isinstance(word, str)}
        if not words >= _MODULE:
            return None
        names = {word.replace(" ", ".") for opcode, word in opcodes if opcode == "GLOBAL"}
        stand_ins: list[Any] = [
            (type("StandIn", (StandIn,), {}), name) for name in sorted(names) if not _torch_builds(name)
        ]
        with warnings.catch_warnings(), torch.serialization.safe_globals(stand_ins):
            warnings.simplefilter("ignore")
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # bytes that are no checkpoint can break the reader in any way
        return None
    if isinstance(found, StandIn):
        return {"model": dict(_tensors(found)), "config": attributes(found)}
    if not isinstance(found, dict):
        return None
    modules = {key: value for key, value in found.items() if _is_module(value)}
    config = {name: value for module in modules.values() for name, value in attributes(module).items()}
    return {**found, **{key: dict(_tensors(module)) for key, module in modules.items()}, "config": config}


def attributes(module: StandIn) -> dict[str, Any]:
    """Numbers, words and truth values of a module and its parts, by dotted names, and the heads that attention has."""
    found = dict(_plain(module))
    for wanted, pattern in (
        ("num_heads", r"(?:.*\.)?blocks\.0\.attn\.num_heads"),
        ("decoder_num_heads", r"(?:.*\.)?decoder_blocks\.0\.attn\.num_heads"),
        ("layer_norm_eps", r"(?:.*\.)?norm\.eps"),
        ("norm_pix_loss", r"(?:.*\.)?norm_pix_loss"),
    ):
        values = [value for name, value in found.items() if re.fullmatch(pattern, name)]
        if values:
            found[wanted] = values[0]
    return found


def _torch_builds(name: str) -> bool:
    """Whether torch's reader knows a name by itself: tensors, storages, plain containers."""
    from torch._weights_only_unpickler import _get_allowed_globals

    return name in _get_allowed_globals()


def _is_module(value: Any) -> bool:
    return isinstance(value, StandIn) and vars(value).keys() >= _MODULE


def _parts(module: Any) -> Iterator[tuple[str, Any]]:
    modules = vars(module).get("_modules")
    yield from modules.items() if isinstance(modules, Mapping) else ()


def _tensors(module: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    for kind in ("_parameters", "_buffers"):
        own = vars(module).get(kind)
        for name, value in own.items() if isinstance(own, Mapping) else ():
            if isinstance(value, Tensor):
                yield f"{prefix}{name}", value.detach()
    for name, part in _parts(module):
        if _is_module(part):
            yield from _tensors(part, f"{prefix}{name}.")


def _plain(module: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in vars(module).items():
        if isinstance(value, bool | int | float | str) and not name.startswith("_"):
            yield f"{prefix}{name}", value
    for name, part in _parts(module):
        if _is_module(part):
            yield from _plain(part, f"{prefix}{name}.")
