"""Weights: checkpoint files read without running what is in them, and loaded strictly.

A file that is not what it should be gets one sentence: what was found, and what to do.
"""

import argparse
import ast
import pickletools
import re
import warnings
import zipfile
from collections.abc import Callable, Collection, Iterable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

import torch
from torch import Tensor, nn

from common.download import download, is_web_page
from common.errors import InputError
from mae.models_mae import ARCHITECTURES, MaskedAutoencoderViT
from mae.models_mae_st import ARCHITECTURES_ST, SpatiotemporalMAE, fuse_qkv, inflate, pixel_statistics

_PUBLIC = "https://dl.fbaipublicfiles.com/mae"
# What MAE's authors publish, preferred first: models that predict plain pixels, the same with a GAN loss, models that
# predict normalised pixels (https://github.com/facebookresearch/mae/issues/8), and encoders alone.
PUBLIC_WEIGHTS: dict[str, str] = {
    name: f"{_PUBLIC}/{folder}/{name}"
    for folder, names in (
        ("visualize", [f"mae_visualize_vit_{size}.pth" for size in ("base", "large", "huge")]),
        ("visualize", [f"mae_visualize_vit_{size}_ganloss.pth" for size in ("large", "huge")]),
        ("pretrain", [f"mae_pretrain_vit_{size}_full.pth" for size in ("base", "large", "huge")]),
        ("pretrain", [f"mae_pretrain_vit_{size}.pth" for size in ("base", "large", "huge")]),
    )
    for name in names
}
# What MAE-ST's authors publish: normalised pixels, Kinetics-400, ViT-L and ViT-H.
PUBLIC_WEIGHTS_ST: dict[str, str] = {
    f"mae_pretrain_vit_{size}_k400.pth": (
        f"https://dl.fbaipublicfiles.com/video-mae/pretrain/mae_pretrain_vit_{size}_k400.pth"
    )
    for size in ("large", "huge")
}

_POSITIONS = ("pos_embed", "decoder_pos_embed")  # fixed sine-cosines, so that some files leave them out
_DECODER = ("decoder_embed.", "mask_token", "decoder_pos_embed", "decoder_blocks.", "decoder_norm.", "decoder_pred.")
_DECODER_ST = _DECODER + tuple(
    f"decoder_{name}" for name in ("cls_token", "pos_embed_class", "pos_embed_spatial", "pos_embed_temporal")
)

_ZIP = b"PK\x03\x04"  # torch.save since 1.6
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch.save before: a pickled magic number
_SAVE = "save the weights alone with torch.save({'model': model.state_dict()}, path)"
_CONVERT = f"if you trust it, load it where its code is with torch.load(path, weights_only=False), and {_SAVE}"


def load_pretrained(path: str | Path, arch: str, **overrides: Any) -> MaskedAutoencoderViT:
    """A MAE of the named architecture with the weights of a file, or of the public file that a folder holds.

    Unless it is given, `norm_pix_loss` follows the file: what its training arguments say; else True for the public
    `mae_pretrain_*`, and for any file without a decoder (which then stays as it was initialised, and that is said);
    else False, as for the public `mae_visualize_*`. Raises `InputError` for a file that does not fit to the last name.
    """
    if arch not in ARCHITECTURES:
        raise InputError(f"unknown architecture {arch!r}; there are {', '.join(ARCHITECTURES)}")
    path = _weights_file(Path(path), arch, PUBLIC_WEIGHTS)
    checkpoint = read_checkpoint(path, mmap=True)  # copied into the model below, so that the file is soon let go
    state = state_dict_of(checkpoint, source=path)
    encoder_only = not any(_matches(name, _DECODER) for name in state)
    if encoder_only:
        print(f"{path.name} holds an encoder only: the decoder starts untrained", flush=True)
    normalised = getattr(checkpoint.get("args"), "norm_pix_loss", path.name.startswith("mae_pretrain_"))
    model = ARCHITECTURES[arch](**{"norm_pix_loss": encoder_only or bool(normalised), **overrides})
    load_strictly(model, state, allowed_missing=_POSITIONS + (_DECODER if encoder_only else ()), source=path)
    model.decoder_is_pretrained = not encoder_only
    return model


def load_pretrained_st(path: str | Path, arch: str, **overrides: Any) -> SpatiotemporalMAE:
    """A MAE-ST of the named architecture with the weights of a file, or of the public file that a folder holds.

    Separate q, k, v are fused. The weights of an image MAE of the same size are inflated (`inflate`), and the decoder
    stays as it was initialised; so it does for a file without a decoder, and that is said. How pixels are normalised,
    and `norm_pix_loss`, are what a checkpoint or an export of this workspace says, unless they are given; else as for
    the public weights, but for a `norm_pix_loss` among the file's training arguments. Raises `InputError` for a file
    that does not fit to the last name: clips of another size or length are for the model to interpolate.
    """
    if arch not in ARCHITECTURES_ST:
        raise InputError(f"unknown architecture {arch!r}; there are {', '.join(ARCHITECTURES_ST)}")
    path = _weights_file(Path(path), arch, PUBLIC_WEIGHTS_ST)
    checkpoint = read_checkpoint(path, mmap=True)
    state = fuse_qkv(state_dict_of(checkpoint, source=path))
    kernel = state.get("patch_embed.proj.weight")
    if kernel is not None and kernel.ndim == 4:
        image_arch = arch.replace("mae_st_", "mae_")
        if image_arch not in ARCHITECTURES:
            raise InputError(f"{path} holds an image MAE, and there is none of the size of {arch} to inflate")
        print(f"{path.name} holds an image MAE: its encoder is inflated, the decoder starts untrained", flush=True)
        return inflate(load_pretrained(path, image_arch), **overrides)
    encoder_only = not any(_matches(name, _DECODER_ST) for name in state)
    if encoder_only:
        print(f"{path.name} holds an encoder only: the decoder starts untrained", flush=True)
    config, normalised = checkpoint.get("config"), getattr(checkpoint.get("args"), "norm_pix_loss", True)
    known: dict[str, Any] = {"norm_pix_loss": encoder_only or bool(normalised)}
    if isinstance(config, Mapping) and config.get("model") == "MAE-ST":
        known = {"norm_pix_loss": config.get("norm_pix_loss", True), **pixel_statistics(config)}
    model = ARCHITECTURES_ST[arch](**{**known, **overrides})
    load_strictly(model, state, allowed_missing=_DECODER_ST if encoder_only else (), source=path)
    return model


def download_pretrained_model(model_url: str, chkpt_dir: str | Path, **options: Any) -> Path:
    """Bring a file of weights into a folder under its name in the URL; `options` are those of `download`.

    The file must be readable as a checkpoint; a good one that is there already is kept without a request.
    """
    name = Path(unquote(urlsplit(model_url).path)).name
    if name in ("", ".."):
        raise InputError(f"{model_url} names no file; the public ones are {', '.join(PUBLIC_WEIGHTS.values())}")
    return download(model_url, Path(chkpt_dir) / name, check=_check_checkpoint, **options)


def read_checkpoint(path: str | Path, *, mmap: bool = False) -> dict[str, Any]:
    """The dict in a file written by torch.save (zip or legacy) or by safetensors, on the CPU.

    A safetensors file of `siammae export` that names its model is read as {"model": tensors, "config": plain values}.
    Only tensors, plain values and `argparse.Namespace` are restored, and no code of the file runs. With `mmap` the
    tensors of a zip file stay on the disk until they are used: for reading at once, not for keeping. Raises
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
        return _read_torch(path, mmap=mmap)
    if _begins_like(head, _LEGACY):
        return _read_torch(path, mmap=False)
    if head.startswith(b"\x80"):
        raise InputError(f"{path} is a pickle that torch.save did not write, and might run code: {_CONVERT}")
    raise InputError(f"{path} is not a checkpoint: its {path.stat().st_size:,} bytes begin with {head[:12]!r}")


def state_dict_of(checkpoint: Mapping[str, Any], *, source: str | Path = "the checkpoint") -> dict[str, Tensor]:
    """The tensors by name: under "model", "model_state" or "state_dict", or the checkpoint itself; "module." is cut.

    "module." is what DistributedDataParallel puts before every name.
    """
    for state in (checkpoint.get("model"), checkpoint.get("model_state"), checkpoint.get("state_dict"), checkpoint):
        if isinstance(state, Mapping) and state and all(isinstance(value, Tensor) for value in state.values()):
            prefix = "module." if all(name.startswith("module.") for name in state) else ""
            return {name.removeprefix(prefix): value for name, value in state.items()}
    raise InputError(
        f"{source} holds no weights: expected tensors by name, bare or under 'model', 'model_state' or 'state_dict', "
        f"found {_few(map(str, checkpoint))}"
    )


def load_strictly(
    model: nn.Module,
    state: Mapping[str, Tensor],
    *,
    allowed_missing: Collection[str] = (),
    allowed_unexpected: Collection[str] = (),
    source: str | Path,
) -> list[str]:
    """Load a state whose names and shapes are the model's, but for the allowed ones; returns which of them are missing.

    What is allowed are exact names, or prefixes that end in ".". Raises `InputError` before anything is loaded.
    """
    own = model.state_dict()
    absent = [name for name in own if name not in state]
    missing = [name for name in absent if not _matches(name, allowed_missing)]
    unexpected = [name for name in state if name not in own and not _matches(name, allowed_unexpected)]
    shapes = [
        f"{name} {list(state[name].shape)} for {list(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    faults = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    if any(faults.values()):
        found = "; ".join(f"{len(names)} {fault}: {_few(names)}" for fault, names in faults.items() if names)
        raise InputError(f"{source} does not fit the model ({found}){_comparison(state, own)}")
    model.load_state_dict({name: state.get(name, value) for name, value in own.items()})
    return absent


def _weights_file(path: Path, arch: str, public: Mapping[str, str]) -> Path:
    """The file itself, or of a folder the preferred one of the public files for an architecture."""
    if not path.is_dir():
        return path
    size = "_".join(arch.split("_")[-3:-1])  # such as vit_base
    wanted = [name for name in public if size in name]
    if not wanted:
        raise InputError(f"{path} is a folder, and there are no public weights for {arch}: give the path of a file")
    found = [name for name in wanted if (path / name).is_file()]
    if not found:
        raise InputError(f"{path} holds none of {', '.join(wanted)}: fetch {public[wanted[0]]} and put it there")
    if found[1:]:
        print(f"{path} holds {', '.join(found)}: using {found[0]}", flush=True)
    return path / found[0]


def _check_checkpoint(path: Path) -> None:
    state_dict_of(read_checkpoint(path, mmap=True), source=path)


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    try:
        state = load_file(path)
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
        return {"model": state, "config": {k: _plain(v) for k, v in about.items()}} if "model" in about else state
    except SafetensorError as error:
        raise InputError(f"{path} is a damaged or cut off safetensors file ({error}): get it again") from error


def _plain(text: str) -> Any:
    """The value that `str` wrote, for safetensors keeps nothing else."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _read_torch(path: Path, *, mmap: bool) -> dict[str, Any]:
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")  # about pickle protocols and TorchScript: the errors below say it better
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # bytes that are not a checkpoint can break the reader in any way
        raise InputError(f"{path} {_why_unreadable(path, error)}") from error
    if not isinstance(checkpoint, dict):
        raise InputError(f"{path} holds a {type(checkpoint).__name__}, not a dict of weights: {_CONVERT}")
    return checkpoint


def _why_unreadable(path: Path, error: Exception) -> str:
    """What a file turns out to be that begins like one of torch.save. Its pickle is looked at, not executed."""
    try:
        opcodes = _pickle_opcodes(path)
    except Exception:  # as above
        return "is a damaged or cut off checkpoint: get it again"
    if not opcodes:
        return "is an archive without a checkpoint in it: give the path of a checkpoint file"
    words = {word for _, word in opcodes if isinstance(word, str)}
    protocol = max(word for opcode, word in opcodes if opcode == "PROTO")
    refused = re.search(r"GLOBAL (\S+)", str(error))
    if {"_parameters", "_modules"} <= words:  # attributes of every nn.Module
        return f"is a whole pickled model, not its weights, and might run code: {_CONVERT}"
    if any(word.startswith("__torch__.") for word in words):
        return f"is a TorchScript model, not its weights: load it with torch.jit.load(path), and {_SAVE}"
    if refused:
        return f"holds {refused[1]} besides tensors and plain values, and might run code: {_CONVERT}"
    if protocol > 2:
        return f"is pickled with protocol {protocol}, and torch reads only 2 safely: {_CONVERT}"
    return "is a damaged or cut off checkpoint: get it again"


def _pickle_opcodes(path: Path) -> list[tuple[str, Any]]:
    """Names and arguments of the opcodes of a checkpoint's pickle."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            pickles: list[BinaryIO] = [BytesIO(archive.read(n)) for n in archive.namelist() if n.endswith("/data.pkl")]
            return [(opcode.name, word) for file in pickles for opcode, word, _ in pickletools.genops(file)]
    with open(path, "rb") as file:  # four pickles in a row: magic number, version, system, and the object
        return [(opcode.name, word) for _ in range(4) for opcode, word, _ in pickletools.genops(file)]


def _comparison(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """For which architecture a file seems to be, if that is another than the model's."""
    theirs, ours = _dimensions(state), _dimensions(own)
    if not theirs or theirs == ours:
        return ""
    with torch.device("meta"):  # shapes without memory
        builders: dict[str, Callable[..., nn.Module]] = {**ARCHITECTURES, **ARCHITECTURES_ST}
        names = [name for name, build in builders.items() if _dimensions(build().state_dict()) == theirs]
    return f"; the file is for {' or '.join(names) or 'a model'} of {theirs}, the model has {ours or 'other parts'}"


def _dimensions(state: Mapping[str, Tensor]) -> str:
    """The size of a vision transformer as far as its state tells."""
    depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    kernel = state.get("patch_embed.proj.weight")
    if kernel is None:
        return ""
    return f"width {kernel.shape[0]}, depth {depth}, patch {'×'.join(map(str, kernel.shape[2:]))}"


def _matches(name: str, allowed: Collection[str]) -> bool:
    return any(name.startswith(entry) if entry.endswith(".") else name == entry for entry in allowed)


def _few(names: Iterable[str], most: int = 4) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (" …" if names[most:] else "")


def _begins_like(head: bytes, magic: bytes) -> bool:
    """Whether a file begins with the magic bytes, or is cut off within them."""
    return head[: len(magic)] == magic[: len(head)]
