"""Checkpoint files, read without running what is in them.

A file that is not what it should be gets one sentence: what was found, and what to do.
"""

import argparse
import ast
import json
import pickletools
import re
import warnings
import zipfile
from collections.abc import Collection, Iterable, Mapping
from contextlib import nullcontext
from io import BytesIO
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, BinaryIO

import torch
from torch import Tensor

from common.download import is_web_page
from common.errors import InputError
from mae.public import PUBLIC_WEIGHTS, PUBLIC_WEIGHTS_ST

_ZIP = b"PK\x03\x04"  # torch.save since 1.6
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch.save before: a pickled magic number
_LARGEST_PICKLE = 2**28
_SAVE = "save the weights alone with torch.save({'model': model.state_dict()}, path)"
_CONVERT = f"if you trust it, load it where its code is with torch.load(path, weights_only=False), and {_SAVE}"


def read_checkpoint(path: str | Path, *, mmap: bool = False) -> dict[str, Any]:
    """The dict in a file written by torch.save (zip or legacy) or by safetensors, on the CPU.

    A safetensors file of `siammae export` is read as {"model": tensors, "config": plain values}. Only tensors, plain
    values, NumPy's scalars, devices, paths and `argparse.Namespace` are restored, and no code of the file runs. With
    `mmap` the tensors of a zip file stay on the disk until they are used: for reading at once, not for keeping. Raises
    `InputError` for everything else.
    """
    path = Path(path)
    if not path.exists():
        url = (PUBLIC_WEIGHTS | PUBLIC_WEIGHTS_ST).get(path.name)
        raise InputError(f"{path} does not exist: {f'fetch {url}' if url else 'give the path of a checkpoint file'}")
    if not path.is_file():
        raise InputError(f"{path} is a folder, not a checkpoint file: give the path of a file in it")
    try:
        with open(path, "rb") as file:
            head = file.read(512)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    if not head:
        raise InputError(f"{path} is empty, not a checkpoint: delete it and fetch or save it again")
    if is_web_page(head):
        raise InputError(f"{path} is a web page, not a checkpoint: delete it and fetch the file itself")
    if head[8:9] == b"{" or (path.suffix == ".safetensors" and len(head) < 9):
        return _read_safetensors(path)
    if _begins_like(head, _ZIP):
        _refuse_huge_pickles(path)
        return _read_torch(path, mmap=mmap)
    if _begins_like(head, _LEGACY):
        return _read_torch(path, mmap=False)
    if head.startswith(b"\x80"):
        raise InputError(f"{path} is a pickle that torch.save did not write, and might run code: {_CONVERT}")
    raise InputError(f"{path} is not a checkpoint: its {path.stat().st_size:,} bytes begin with {head[:12]!r}")


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    try:
        state = load_file(path)
        with safe_open(path, "pt") as file:
            about = {name: plain_value(text) for name, text in (file.metadata() or {}).items() if name != "format"}
        return {"model": state, "config": about} if about else state
    except SafetensorError as error:
        raise InputError(f"{path} is a damaged or cut off safetensors file ({error}): get it again") from error


def plain_value(text: str) -> Any:
    """The value that `str` or JSON wrote, for safetensors keeps nothing else."""
    for read in (ast.literal_eval, json.loads):
        try:
            return read(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            pass
    return text


def _read_torch(path: Path, *, mmap: bool) -> dict[str, Any]:
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_plain_types()):
            warnings.simplefilter("ignore")  # about pickle protocols and TorchScript: the errors below say it better
            named = path.suffix == ".safetensors"  # torch goes by the name; this file is one of its own
            with open(path, "rb") if named else nullcontext(path) as file:
                checkpoint = torch.load(file, map_location="cpu", weights_only=True, mmap=mmap and not named)
    except Exception as error:  # bytes that are not a checkpoint can break the reader in any way
        raise InputError(f"{path} {_why_unreadable(path, error)}") from error
    if not isinstance(checkpoint, dict):
        raise InputError(f"{path} holds a {type(checkpoint).__name__}, not a dict of weights: {_CONVERT}")
    return checkpoint


def _refuse_huge_pickles(path: Path) -> None:
    """Zeros pack a thousandfold; a pickle of names and numbers is small, since tensors lie beside it."""
    try:
        with zipfile.ZipFile(path) as archive:
            size = max((entry.file_size for entry in archive.infolist() if entry.filename.endswith(".pkl")), default=0)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return  # the reader says it better
    if size > _LARGEST_PICKLE:
        raise InputError(f"{path} is no checkpoint: the pickle in it unpacks to {size:,} bytes; get it again")


def _plain_types() -> list[Any]:
    """What training arguments and optimisers hold beside tensors: NumPy's scalars, devices, paths, a Namespace."""
    import numpy as np

    kinds = {type(np.dtype(code)) for code in np.typecodes["AllInteger"] + np.typecodes["AllFloat"] + "?"}
    scalar = np.float64(0).__reduce__()[0]
    paths = [
        (kind, f"{module}.{name}")
        for module in ("pathlib", "pathlib._local")
        for name in ("PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath")
        for kind in [PureWindowsPath if "Windows" in name else PurePosixPath]
    ]
    old_and_new = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    return [argparse.Namespace, torch.device, np.dtype, *kinds, *old_and_new, *paths]


def _why_unreadable(path: Path, error: Exception) -> str:
    """What a file turns out to be that begins like one of torch.save. Its pickle is looked at, not executed."""
    try:
        opcodes = pickle_opcodes(path)
    except Exception:  # as above
        return "is a damaged or cut off checkpoint: get it again"
    if not opcodes and all(name.endswith(".npy") for name in zipfile.ZipFile(path).namelist()):
        return "holds NumPy arrays (as RVM's weights do), which no model here reads: give a checkpoint of PyTorch"
    if not opcodes:
        return "is an archive without a checkpoint in it: give the path of a checkpoint file"
    words = {word for _, word in opcodes if isinstance(word, str)}
    protocol = max(word for opcode, word in opcodes if opcode == "PROTO")
    refused = re.search(r"GLOBAL (\S+)", str(error))
    if {"_parameters", "_modules"} <= words:  # attributes of every nn.Module
        legacy = "" if zipfile.is_zipfile(path) else " in the format from before torch 1.6"
        return f"is a whole pickled model{legacy}, not its weights, and might run code: {_CONVERT}"
    if any(word.startswith("__torch__.") for word in words):
        return f"is a TorchScript model, not its weights: load it with torch.jit.load(path), and {_SAVE}"
    if refused:
        return f"holds {refused[1]} besides tensors and plain values, and might run code: {_CONVERT}"
    if protocol > 2:
        return f"is pickled with protocol {protocol}, and torch reads only 2 safely: {_CONVERT}"
    return "is a damaged or cut off checkpoint: get it again"


def pickle_opcodes(path: Path) -> list[tuple[str, Any]]:
    """Names and arguments of the opcodes of a checkpoint's pickle."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            pickles: list[BinaryIO] = [BytesIO(archive.read(n)) for n in archive.namelist() if n.endswith("/data.pkl")]
            return [(opcode.name, word) for file in pickles for opcode, word, _ in pickletools.genops(file)]
    with open(path, "rb") as file:  # four pickles in a row: magic number, version, system, and the object
        return [(opcode.name, word) for _ in range(4) for opcode, word, _ in pickletools.genops(file)]


def misfits(
    own: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    allowed_missing: Collection[str] = (),
    allowed_unexpected: Collection[str] = (),
) -> str:
    """In words the names and shapes of a state that are not a module's own; "" where all fit.

    What is allowed are exact names, or prefixes that end in ".".
    """
    shapes = [
        f"{name} {list(state[name].shape)} for {list(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    faults = {
        "missing": [name for name in own if name not in state and not matches(name, allowed_missing)],
        "unexpected": [name for name in state if name not in own and not matches(name, allowed_unexpected)],
        "of another shape": shapes,
    }
    return "; ".join(f"{len(names)} {fault}: {few(names)}" for fault, names in faults.items() if names)


def matches(name: str, allowed: Collection[str]) -> bool:
    """Whether a name is one of those allowed, or begins with one of them that ends in "."."""
    return any(name.startswith(entry) if entry.endswith(".") else name == entry for entry in allowed)


def few(names: Iterable[str], most: int = 4) -> str:
    """The first of several names, for a sentence."""
    names = list(names)
    return ", ".join(names[:most]) + (" …" if names[most:] else "")


def _begins_like(head: bytes, magic: bytes) -> bool:
    """Whether a file begins with the magic bytes, or is cut off within them."""
    return head[: len(magic)] == magic[: len(head)]
