"""A file of weights of any origin, unwrapped: the tensors of one model, its settings, and what was chosen."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.errors import InputError
from mae.formats.whole_modules import plain, read_with_stand_ins
from mae.reading import few, read_checkpoint

State = dict[str, Tensor]

# Under which key a checkpoint keeps a model's tensors: one that tells of a teacher or of averaged weights before all
# others, since they are what their authors evaluate, and what a training is kept for.
_AVERAGED = re.compile(r"(?:^|[_.])(teacher|ema|target|average)(?=[_.]|$)")
_CONTAINERS = ("model", "model_state", "state_dict", "module", "encoder", "backbone", "net", "student")
# Under which key its settings lie.
_SETTINGS = ("args", "config", "cfg", "hparams", "hyper_parameters", "opt")
_SECTIONS = ("model", "model_cfg", "model_args", "encoder", "config", "args")  # of settings, with an encoder's in them
_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# The patch embedding, by which the encoder is found under whatever prefix: timm's name, and Transformers'.
_EMBEDDINGS = ("patch_embed.proj.weight", "embeddings.patch_embeddings.projection.weight")
# By which of these files a folder is one model; the last as aweers/replicate_siamMAE saves its modules one by one.
_WHOLE = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
FOLDER_FILES = (*_WHOLE, "encoder.pt")
_SUFFIXES = (".pt", ".pth", ".safetensors", ".bin", ".ckpt", ".tar")


@dataclass
class Weights:
    """The tensors of one model, float32, by names without wrappers and without the prefix of its encoder.

    settings: training arguments, configuration or attributes, as plain values. chosen: the words for what was taken
    where a file holds several models. bare: the tensors lay in the file without anything around them.
    """

    path: Path
    state: State
    settings: dict[str, Any] = field(default_factory=dict)
    epoch: int | None = None
    chosen: str = ""
    prefix: str = ""
    bare: bool = False
    folder: bool = False
    half: bool = False

    def has(self, pattern: str) -> bool:
        """Whether any name begins like the regular expression."""
        return any(re.match(pattern, name) for name in self.state)

    def setting(self, *names: str) -> Any:
        """The first of these settings that the file states, else None."""
        return next((self.settings[name] for name in names if self.settings.get(name) is not None), None)


def open_weights(path: str | Path) -> Weights:
    """Read a file, or a folder of timm, of Transformers or of parts of one model; an InputError without weights."""
    path = Path(path)
    if path.is_dir():
        return _open_folder(path)
    beside = _settings_of(path.parent) if path.name in _WHOLE else {}
    if path.name.endswith(".index.json"):
        return _unwrap(path, _read_shards(path), beside, folder=True)
    try:
        checkpoint = read_checkpoint(path, mmap=True)
    except InputError:
        read = read_with_stand_ins(path)
        if read is None:
            raise
        checkpoint = read
    return _unwrap(path, checkpoint, beside, folder=bool(beside))


def _open_folder(path: Path) -> Weights:
    for name in _WHOLE:
        if (path / name).is_file():
            return open_weights(path / name)
    parts = [path / f"{part}.pt" for part in ("encoder", "embedding", "decoder")]
    if all(part.is_file() for part in parts[:2]):
        joined = {
            f"{part.stem}.{name}": value
            for part in parts
            if part.is_file()
            for name, value in read_checkpoint(part, mmap=True).items()
        }
        return _unwrap(path, joined, _settings_of(path), folder=True)
    files = sorted(file for file in path.iterdir() if file.suffix in _SUFFIXES and not file.name.startswith("."))
    if len(files) == 1:
        return open_weights(files[0])
    inside = f"it holds {len(files)}: {', '.join(f.name for f in files[:6])}" if files else "it holds none"
    raise InputError(f"{path} is a folder, and which of its weights are meant is not clear ({inside}); name one file")


def _unwrap(path: Path, checkpoint: Mapping[str, Any], beside: Mapping[str, Any], *, folder: bool = False) -> Weights:
    settings = dict(beside)
    for name in _SETTINGS:
        inside = plain(checkpoint.get(name))
        settings |= inside if isinstance(inside, Mapping) else {}
    for inner in [v for k in _SECTIONS if isinstance(v := settings.get(k), Mapping)]:
        settings = {**inner, **settings}
    keys, tensors = _find(checkpoint)
    if not tensors:
        found = ", ".join(map(str, list(checkpoint)[:6])) or "nothing"
        only = "an optimizer's state and " if {"optimizer", "param_groups"} & set(checkpoint) else ""
        raise InputError(f"{path} holds {only}no weights: expected tensors by name, found {found}")
    averaged = checkpoint.get("averaged")  # of this workspace: only what is averaged, to be laid over the rest
    chosen = next((key for key in keys if _AVERAGED.search(key)), "")
    if isinstance(averaged, Mapping) and averaged:
        tensors, chosen = {**tensors, **averaged}, "averaged"
    elif not chosen and keys[-1:] == ["student"]:
        chosen = "student"
    state = _without_wrappers(tensors)
    prefix, others = _encoder_prefixes(state)
    parent = prefix[: prefix.rstrip(".").rfind(".") + 1]  # of "model.encoder.", a decoder lies below "model."
    inside = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    outside = {
        name.removeprefix(parent): value
        for name, value in state.items()
        if not name.startswith((prefix, *others))  # others are encoders as well
    }
    chosen = chosen or (prefix if _AVERAGED.search(prefix) else "")
    half = any(value.dtype in (torch.float16, torch.bfloat16) for value in inside.values())
    epoch = checkpoint.get("epoch")
    return Weights(
        path, {k: v.float() if v.is_floating_point() else v for k, v in {**outside, **inside}.items()},
        settings, epoch if isinstance(epoch, int) else None, chosen, prefix,
        bare=not folder and (not keys or checkpoint.keys() == {"model", "config"}), folder=folder, half=half,
    )  # fmt: skip


def _find(checkpoint: Mapping[str, Any], depth: int = 3) -> tuple[list[str], State]:
    """The keys that lead to the tensors of a model, and the tensors; nothing where there are none."""
    own = {name: value for name, value in checkpoint.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if any(name.endswith("weight") for name in own) and len(own) > len(checkpoint) / 2:
        return [], own
    names = [key for key in checkpoint if isinstance(key, str) and not key.startswith("optim")]
    averaged, known = (list(filter(fits, names)) for fits in (_AVERAGED.search, _CONTAINERS.__contains__))
    for key in dict.fromkeys([*averaged, *sorted(known, key=_CONTAINERS.index), *names]) if depth else ():
        if isinstance(inner := checkpoint[key], Mapping):
            keys, tensors = _find(inner, depth - 1)
            if tensors:
                return [key, *keys], tensors
    return [], {}


def _without_wrappers(tensors: Mapping[str, Tensor]) -> State:
    short = {_WRAPPERS.sub("", name): value for name, value in tensors.items()}
    return short if len(short) == len(tensors) else dict(tensors)


def _encoder_prefixes(state: State) -> tuple[str, list[str]]:
    """What stands before the names of the encoder, and before those of other ones; of several, the teacher is it."""
    found = {name.removesuffix(mark) for mark in _EMBEDDINGS for name in state if f".{name}".endswith(f".{mark}")}
    prefixes = sorted(found, key=len)
    chosen = next((p for p in prefixes if _AVERAGED.search(p)), prefixes[0] if prefixes else "")
    return chosen, [prefix for prefix in prefixes if prefix != chosen and not chosen.startswith(prefix)]


def _settings_of(folder: Path) -> dict[str, Any]:
    """What config.json and, of Transformers, preprocessor_config.json tell."""
    files = (folder / name for name in ("preprocessor_config.json", "config.json"))
    return {name: value for file in files if file.is_file() for name, value in _read_json(file).items()}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error}): get it again") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} holds a {type(values).__name__}; expected the settings of a model by name")
    return values


def _read_shards(index: Path) -> State:
    names = _read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise InputError(f"{index} names no files: expected a weight_map from names of tensors to files beside it")
    files = [index.parent / Path(str(file)).name for file in dict.fromkeys(names.values())]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise InputError(f"{index} names {len(files)} files, of which {few(missing)} are missing: get them as well")
    found: State = {}
    for file in files:
        checkpoint = read_checkpoint(file, mmap=True)
        found |= checkpoint.get("model", checkpoint)
    if absent := [name for name in names if name not in found]:
        raise InputError(f"{index}: its files hold no {few(absent)}: get them again")
    return found
