"""The encoder of images in plain jax.numpy: `load` an exported encoder.safetensors, `encode` images under `jit`.

The same computation as `mae.models_mae.MAEEncoder`, so that what was trained in torch can be used in a JAX program.
Legend: B batch, N patches, D width, h w patch grid, H W pixels, p pixels along a patch.
"""

import ast
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax import Array
from torch import Tensor

from common.errors import InputError
from mae.patches import IMAGENET_MEAN, IMAGENET_STD


@partial(
    jax.tree_util.register_dataclass, data_fields=["weights"], meta_fields=["grid", "patch", "depth", "heads", "eps"]
)
@dataclass(frozen=True)
class Params:
    """The weights by MAE's names, and the sizes that they do not tell, which `jit` takes as constants."""

    weights: dict[str, Array]
    grid: tuple[int, int]
    patch: int
    depth: int
    heads: int
    eps: float = 1e-6


def load(path: str | Path) -> Params:
    """Read what `siammae export --to jax` wrote; an InputError for another file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            about = {name: ast.literal_eval(value) for name, value in (file.metadata() or {}).items()}
            weights = {name: jnp.asarray(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118, it is no dict
        size, patch = about["img_size"], about["patch_size"]
        height, width = (size, size) if isinstance(size, int) else size
        grid = (height // patch, width // patch)
        return Params(weights, grid, patch, about["depth"], about["num_heads"], about.get("norm_eps", 1e-6))
    except (OSError, SafetensorError, KeyError, ValueError, SyntaxError) as error:
        raise InputError(
            f"{path} is no encoder that `siammae export RUN --to jax` wrote ({error}): export one, or use --source FILE"
        ) from error


@jax.jit
def encode(params: Params, images: Array) -> Array:
    """Images [B, 3, H, W] (uint8, or floats in [0, 1]) → features of the last block after its norm, [B, h, w, D]."""
    with jax.default_matmul_precision("highest"):
        B, _, H, W = images.shape
        h, w = H // params.patch, W // params.patch
        x = _tokens(params, _normalize(images), h, w)
        for n in range(params.depth):
            x = _block(params, f"blocks.{n}.", x)
        return _norm(params, "norm", x)[:, 1:].reshape(B, h, w, -1)


def torch_encode(path: str | Path) -> tuple[Callable[[Tensor], Tensor], int]:
    """`encode` of a file for callers who have torch's tensors, [B, 3, H, W] → [B, h, w, D]; and the size of a patch."""
    params = load(path)
    return lambda images: torch.tensor(np.asarray(encode(params, jnp.asarray(images.cpu().numpy())))), params.patch


def _normalize(images: Array) -> Array:
    pixels = images.astype(jnp.float32) / (255 if images.dtype == jnp.uint8 else 1)
    mean, std = (jnp.array(values, jnp.float32)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (pixels - mean) / std


def _tokens(params: Params, pixels: Array, h: int, w: int) -> Array:
    """Pixels [B, 3, H, W] → class token and patches with positions, [B, 1 + N, D]."""
    p, kernel = params.patch, params.weights["patch_embed.proj.weight"]
    patches = pixels.reshape(-1, 3, h, p, w, p).transpose(0, 2, 4, 1, 3, 5).reshape(len(pixels), h * w, -1)
    positions = params.weights["pos_embed"]
    x = patches @ kernel.reshape(len(kernel), -1).T + params.weights["patch_embed.proj.bias"]
    x = x + _resize(positions[0, 1:], params.grid, (h, w))
    first = jnp.broadcast_to(params.weights["cls_token"] + positions[:, :1], (len(x), 1, x.shape[-1]))
    return jnp.concatenate([first, x], axis=1)


def _block(params: Params, name: str, x: Array) -> Array:
    """Pre-norm self-attention and MLP, [B, N, D] → [B, N, D]."""
    B, N, D = x.shape
    qkv = _linear(params, f"{name}attn.qkv", _norm(params, f"{name}norm1", x))
    q, k, v = qkv.reshape(B, N, 3, params.heads, -1).transpose(2, 0, 3, 1, 4)  # each [B, heads, N, D / heads]
    attention = jax.nn.softmax(q @ k.swapaxes(-1, -2) * q.shape[-1] ** -0.5)
    x = x + _linear(params, f"{name}attn.proj", (attention @ v).swapaxes(1, 2).reshape(B, N, D))
    hidden = jax.nn.gelu(_linear(params, f"{name}mlp.fc1", _norm(params, f"{name}norm2", x)), approximate=False)
    return x + _linear(params, f"{name}mlp.fc2", hidden)


def _linear(params: Params, name: str, x: Array) -> Array:
    return x @ params.weights[f"{name}.weight"].T + params.weights[f"{name}.bias"]


def _norm(params: Params, name: str, x: Array) -> Array:
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    scaled = (x - mean) * jax.lax.rsqrt(variance + params.eps)
    return scaled * params.weights[f"{name}.weight"] + params.weights[f"{name}.bias"]


def _resize(table: Array, grid: tuple[int, int], wanted: tuple[int, int]) -> Array:
    """Positions [N, D] of one grid → of another, bicubically as torch does it; jax.image has another cubic kernel."""
    if grid == wanted:
        return table
    rows, columns = (_cubic(old, new) for old, new in zip(grid, wanted, strict=True))
    places = jnp.einsum("yh,hwd,xw->yxd", rows, table.reshape(*grid, -1), columns)
    return places.reshape(-1, table.shape[-1])


def _cubic(old: int, new: int) -> np.ndarray:
    """The linear map [new, old] of bicubic interpolation along an axis: a = −0.75, edges repeated, no antialiasing."""
    places = (np.arange(new) + 0.5) * old / new - 0.5
    left, a = np.floor(places).astype(int), -0.75
    matrix = np.zeros((new, old))
    for offset in (-1, 0, 1, 2):
        x = np.abs(places - (left + offset))
        near = (a + 2) * x**3 - (a + 3) * x**2 + 1
        far = a * (x**3 - 5 * x**2 + 8 * x - 4)
        np.add.at(matrix, (np.arange(new), (left + offset).clip(0, old - 1)), np.where(x <= 1, near, far))
    return matrix.astype(np.float32)
