"""What a family of weights is: how it is recognised, renamed and built, and what of it is left out."""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import InputError
from mae.formats.encoder import Encoder
from mae.formats.opening import State, Weights
from mae.positions import sincos_positions
from mae.reading import few, misfits

# Heads of the vision transformers that have a name, by width and depth: Ti, S, B, L, H, and DINOv2's and VideoMAE's g.
KNOWN_HEADS = {
    (192, 12): 3, (384, 12): 6, (768, 12): 12, (1024, 24): 16, (1280, 32): 16, (1408, 40): 16, (1536, 40): 24,
}  # fmt: skip
_SIZES = {(192, 12): "Ti", (384, 12): "S", (768, 12): "B", (1024, 24): "L", (1280, 32): "H"}
_SIZES |= {(1408, 40): "g", (1536, 40): "g"}
_HEADS = ("head.", "head_drop.", "pooler.", "classifier.")  # of classifiers


@dataclass(frozen=True)
class Family:
    """One family of weights.

    fits: whether a file is one of it, by its names. rename: its names → MAE's. options: keywords of `Encoder` that no
    name tells. others: prefixes of names that are no part of the encoder. left_out: what these are, in words. decoder:
    its weights under the names of `ml.SiamMAE.CrossDecoder`, where it is one. build: its own module in place of
    `Encoder`. refused: why it cannot be read, if so. fixed_positions: positions are sines
    and cosines, which some files leave out.
    """

    name: str
    fits: Callable[[Weights], bool]
    rename: Callable[[State], State] = dict
    options: Callable[[Weights], dict[str, Any]] = lambda weights: {}
    others: tuple[str, ...] = ()
    left_out: str = ""
    decoder: Callable[["Family", Weights], "Decoder | None"] | None = None
    build: Callable[[Weights, int | None], nn.Module] | None = None
    refused: str = ""
    fixed_positions: bool = False


@dataclass(frozen=True)
class Decoder:
    """A decoder that can be taken over: its weights under the names of `CrossDecoder`, and (width, depth, heads)."""

    state: State
    size: tuple[int, int, int]
    norm_pix_loss: bool
    mask_ratio: float | None = None
    kind: str = "cross-self"

    @property
    def sizes(self) -> dict[str, Any]:
        """Its sizes as keywords of `CrossDecoder`."""
        hidden = next(value.shape[0] for name, value in self.state.items() if name.endswith("mlp.fc1.weight"))
        sizes = zip(("dim", "depth", "num_heads"), self.size, strict=True)
        return {**dict(sizes), "mlp_ratio": hidden / self.size[0]}


@dataclass
class Loaded:
    """An encoder with what is known about it."""

    family: Family
    weights: Weights
    encoder: Any
    about: str

    def decoder(self) -> Decoder | None:
        """Its decoder, if it is one that `ml.SiamMAE` can take over."""
        try:
            return self.family.decoder(self.family, self.weights) if self.family.decoder else None
        except KeyError as error:
            raise InputError(f"{self.weights.path}: the decoder does not fit (missing: {error})") from error


def build_encoder(family: Family, weights: Weights, num_heads: int | None) -> Encoder:
    """The encoder of a family's file, loaded strictly: each name is the encoder's or one of the family's `others`."""
    state = encoder_state(family, weights)
    keywords = {**_sizes(family, weights, state), **family.options(weights)}
    if "grid" not in keywords and family.fixed_positions and "cls_token" in state:
        size, patch = image_size(weights) or (224, 224), keywords["patch_size"]
        keywords |= dict(table="class", grid=(size[0] // patch, size[1] // patch))
        state["pos_embed"] = sincos_positions(keywords["embed_dim"], keywords["grid"])
    if "grid" not in keywords:
        raise InputError(f"{weights.path} looks like {family.name}, but does not fit (1 missing: pos_embed)")
    width, depth = keywords["embed_dim"], keywords["depth"]
    keywords["num_heads"] = heads_of(weights, width, depth, num_heads or keywords.get("num_heads"))
    with torch.device("meta"):
        encoder = Encoder(**keywords)
    load_into(encoder, state, weights, family.name)
    return encoder.eval()


def encoder_state(family: Family, weights: Weights) -> State:
    """The encoder's weights under MAE's names: without other parts, and with a norm after pooling as the final one."""
    state = {name: value for name, value in family.rename(weights.state).items() if not _begins(name, _HEADS)}
    if "norm.weight" not in state:
        state = {re.sub("^fc_norm\\.", "norm.", name): value for name, value in state.items()}
    return {name: value for name, value in state.items() if not _begins(name, family.others)}


def load_into(module: nn.Module, state: Mapping[str, Tensor], weights: Weights, name: str) -> None:
    """Give a module of `meta` tensors its weights; an InputError names the first that do not fit."""
    if found := misfits(module.state_dict(), state):
        raise InputError(f"{weights.path} looks like {name}, but does not fit ({found})")
    copies = {key: value.clone() for key, value in state.items()}  # the file, which may be mapped, is let go
    module.load_state_dict(copies, assign=True)
    module.requires_grad_(True)
    for table in [value for key, value in module.named_parameters() if key.startswith("pos_embed")]:
        table.requires_grad_(False)


def heads_of(
    weights: Weights, width: int, depth: int, given: int | None, *, prefix: str = "", usual: int | None = None
) -> int:
    """How many heads attention has: given, in the settings, or those of a known vision transformer of this size, or
    what is usual, or what whoever asks has. prefix: `decoder_` for those of a decoder. No file of weights states it.
    """
    names = ("num_heads", "num_attention_heads", "heads", "n_heads", "nhead")
    of_encoder = tuple(f"encoder_{name}" for name in names) if not prefix else ()
    stated = weights.setting(*(f"{prefix}{name}" for name in names), *of_encoder)
    heads = given or stated or KNOWN_HEADS.get((width, depth)) or usual or weights.setting(f"{prefix}asked_heads")
    what = "decoder" if prefix else "encoder"
    if not isinstance(heads, int) or isinstance(heads, bool) or heads < 1:
        raise InputError(
            f"{weights.path}: how many heads its {what} has is nowhere in the file, and {width} wide × {depth} deep is "
            f"no known vision transformer; add it to the name, as in {weights.path.name},{prefix}num_heads=4"
        )
    if width % heads:
        raise InputError(f"{weights.path}: {heads} heads do not divide its width of {width}; say {prefix}num_heads")
    return heads


def describe(family: Family, weights: Weights, encoder: Any) -> str:
    """One line: kind, size, epoch, what was chosen and what was left out."""
    width, depth = encoder.embed_dim, len(encoder.blocks)
    patch = encoder.patch_size
    tubelet = getattr(encoder, "t_patch_size", 0)
    size = f"ViT-{_SIZES.get((width, depth), f'{width}×{depth}')}/{f'{tubelet}×' if tubelet else ''}{patch}"
    words = [family.name, size, f"{depth} blocks, {encoder.num_heads} heads"]
    if weights.epoch is not None:
        words.insert(2, f"epoch {weights.epoch}")
    if weights.chosen:
        of_pair = next((word for word in ("teacher", "student") if word in weights.chosen), "")
        words.append(f"the {of_pair}" if of_pair else "averaged weights")
    if weights.half:
        words.append("from 16-bit weights")
    there = not family.others or any(_begins(name, family.others) for name in family.rename(weights.state))
    return ", ".join(words) + (f"; {family.left_out}" if family.left_out and there else "")


def statistics(weights: Weights) -> dict[str, Any]:
    """mean and std of a `pretrained_cfg` (timm) or of a preprocessor's configuration, where the settings have them."""
    inner = weights.settings.get("pretrained_cfg")
    known = inner if isinstance(inner, Mapping) else weights.settings
    if known.get("do_normalize") is False:
        return dict(mean=(0.0,) * 3, std=(1.0,) * 3)
    names = {"mean": ("mean", "image_mean", "pixel_mean"), "std": ("std", "image_std", "pixel_std")}
    found = {k: next((known[n] for n in ns if n in known), None) for k, ns in names.items()}
    return {k: tuple(v) for k, v in found.items() if isinstance(v, list | tuple) and len(v) == 3}


def fuse_biases(state: State) -> State:
    """`attn.q_bias` and `attn.v_bias` → `attn.qkv.bias` with zeros for the keys (BEiT's way, and VideoMAE's)."""
    fused = dict(state)
    for name in [name for name in state if name.endswith(".q_bias")]:
        q, v = fused.pop(name), fused.pop(name.replace(".q_bias", ".v_bias"))
        fused[name.replace(".q_bias", ".qkv.bias")] = torch.cat([q, torch.zeros_like(q), v])
    return fused


def _sizes(family: Family, weights: Weights, state: State) -> dict[str, Any]:
    """The keywords of `Encoder` that names and shapes tell."""
    kernel, first, last = (
        state.get(name) for name in ("patch_embed.proj.weight", "blocks.0.mlp.fc1.weight", "blocks.0.mlp.fc2.weight")
    )
    depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    if kernel is None or first is None or last is None:
        raise InputError(
            f"{weights.path} looks like {family.name}, but its encoder is not in it: expected patch_embed.proj.weight, "
            f"blocks.0.mlp.fc1.weight and others, found {few(weights.state)}"
        )
    width, patch = kernel.shape[0], kernel.shape[-1]
    found: dict[str, Any] = dict(
        patch_size=patch, embed_dim=width, depth=depth,
        mlp_ratio=(first.shape[0] + 0.5) / width,  # `Block` rounds down
        gated=first.shape[0] == 2 * last.shape[1],
        class_token="cls_token" in state,
        registers=state["reg_token"].shape[1] if "reg_token" in state else 0,
        layer_scale="blocks.0.ls1.gamma" in state,
        qkv_bias="blocks.0.attn.qkv.bias" in state,
        qk_norm="blocks.0.attn.q_norm.weight" in state,
        pre_norm="norm_pre.weight" in state,
        t_patch_size=kernel.shape[2] if kernel.ndim == 5 else 0,
    )  # fmt: skip
    if "pos_embed" in state:
        stored = state["pos_embed"].shape[1]
        of_class, grid = _table(weights, stored, patch, found["class_token"])
        found |= dict(table="class" if of_class else "patches", grid=grid)
    elif "pos_embed_spatial" in state and "pos_embed_temporal" in state:
        _, grid = _table(weights, state["pos_embed_spatial"].shape[1], patch, False)
        found |= dict(table="space-time", grid=grid, steps=state["pos_embed_temporal"].shape[1])
    return found


def _table(weights: Weights, stored: int, patch: int, class_token: bool) -> tuple[bool, tuple[int, int]]:
    """Whether a table of so many positions has one for the class token, and the grid (h, w) of the others.

    By the size of the image in the settings if that fits, else by what is a square.
    """
    size = image_size(weights)
    grid = (size[0] // patch, size[1] // patch) if size else (0, 0)
    for prefix in (1, 0) if class_token else (0,):
        if stored - prefix == grid[0] * grid[1]:
            return prefix == 1, grid
    prefix = int(class_token and math.isqrt(stored - 1) ** 2 == stored - 1)
    side = math.isqrt(stored - prefix)
    if side * side != stored - prefix:
        raise InputError(
            f"{weights.path}: its {stored} positions are no square of patches, and its settings do not tell the size "
            "of the images; put that into a config.json beside model.safetensors, as img_size: [H, W]"
        )
    return prefix == 1, (side, side)


def image_size(weights: Weights) -> tuple[int, int] | None:
    """(H, W) of the images in training, where the settings tell it."""
    of_timm = weights.settings.get("pretrained_cfg") or {}
    size: Any = weights.setting("img_size", "image_size", "input_size") or of_timm.get("input_size")
    size = [size, size] if isinstance(size, int) else size
    fits = isinstance(size, list | tuple) and len(size) >= 2 and all(isinstance(x, int) for x in size)
    return (size[-2], size[-1]) if fits else None


def _begins(name: str, prefixes: Iterable[str]) -> bool:
    return any(name.startswith(prefix) for prefix in prefixes)
