"""Pickles that name classes of other projects, read without their code: nothing is imported, nothing is run.

torch's restricted reader builds tensors and plain values, and refuses every other name that a pickle mentions. Here
each of these names gets a stand-in of its own, which keeps attributes and does nothing: for whole pickled modules, and
for settings of other kinds than `argparse.Namespace`, such as OmegaConf's.
"""

import _compat_pickle
import re
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from mae.reading import pickle_opcodes

_MODULE = {"_parameters", "_modules"}  # attributes of every nn.Module
# No checkpoint has a reason to name these: a file that does is refused aloud. torch refuses os, posix, nt and sys.
_DANGEROUS = re.compile(r"(subprocess|shutil|socket|runpy|pty|importlib|ctypes|builtins\.(eval|exec|compile|open))\b")


class StandIn:
    """Takes the place of a class, of a function, or of what they would have made."""

    def __new__(cls, *arguments: Any, **keywords: Any) -> Any:
        return super().__new__(cls)

    def __init__(self, *arguments: Any, **keywords: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        """Keep attributes, for `_tensors` to find; of functools.partial and others the state is no dict."""
        if isinstance(state, tuple) and len(state) == 2 and isinstance(state[0], dict):
            state = state[0]
        if isinstance(state, dict):
            self.__dict__.update(state)


class _Dict(StandIn):
    """Of a class of mappings: torch fills plain ones only."""

    def __new__(cls, *arguments: Any, **keywords: Any) -> Any:
        return OrderedDict()


class _List(StandIn):
    def __new__(cls, *arguments: Any, **keywords: Any) -> Any:
        return []


def read_with_stand_ins(path: Path) -> dict[str, Any] | None:
    """The dict that torch.save wrote, or a whole module as {"model": state dict}; None of what cannot be read so.

    A module in a dict becomes its state dict. The plain attributes of modules, by their dotted names, are put under
    "config".
    """
    try:
        opcodes = pickle_opcodes(path)
        names = {_as_in_python_3(word) for opcode, word in opcodes if opcode == "GLOBAL"}
        unknown = sorted(name for name in names if not _torch_builds(name))
        if not unknown or any(_DANGEROUS.match(name) for name in unknown):
            return None
        found = _load(path, unknown)
    except Exception:  # bytes that are no checkpoint can break the reader in any way
        return None
    if isinstance(found, StandIn):
        found = {"model": found}
    if not isinstance(found, dict):
        return None
    modules = {key: value for key, value in found.items() if _is_module(value)}
    if not modules:
        return found
    config = {name: value for module in modules.values() for name, value in _attributes(module).items()}
    return {**found, **{key: dict(_tensors(module)) for key, module in modules.items()}, "config": config}


def plain(value: Any, depth: int = 8) -> Any:
    """Settings without stand-ins: their attributes as a dict; of OmegaConf's what it wraps."""
    inside = value if isinstance(value, Mapping) else getattr(value, "__dict__", None)
    if inside is None or isinstance(value, type | Tensor) or not depth:
        return value
    for name in ("_content", "_val"):
        if name in inside:
            return plain(inside[name], depth)
    return {str(name): plain(inner, depth - 1) for name, inner in inside.items() if not str(name).startswith("_")}


def _load(path: Path, names: list[str]) -> Any:
    """What the file holds, with a stand-in for each of the names. Which are mappings or lists shows while reading."""
    kinds: dict[str, type] = dict.fromkeys(names, StandIn)
    while True:
        stand_ins: list[Any] = [(type(name, (kind,), {"__module__": ""}), name) for name, kind in kinds.items()]
        try:
            with warnings.catch_warnings(), torch.serialization.safe_globals(stand_ins):
                warnings.simplefilter("ignore")
                return torch.load(path, map_location="cpu", weights_only=True)
        except UnpicklingError as error:
            wrong = re.search(r"Can only (SETITEM|append|extend).* got <class '\.?([^']+)'>", str(error))
            if wrong is None or kinds.get(wrong[2]) is not StandIn:
                raise
            kinds[wrong[2]] = _Dict if wrong[1] == "SETITEM" else _List


def _attributes(module: StandIn) -> dict[str, Any]:
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


def _as_in_python_3(name: str) -> str:
    """The dotted name of a GLOBAL's "module name": pickles of torch have Python 2's names."""
    module, _, kind = name.partition(" ")
    if (module, kind) in _compat_pickle.NAME_MAPPING:
        module, kind = _compat_pickle.NAME_MAPPING[module, kind]
    return f"{_compat_pickle.IMPORT_MAPPING.get(module, module)}.{kind}"


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
