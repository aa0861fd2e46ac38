"""Where features come from: a name → a function from images to features, which brings its own normalisation along.

Checkpoints of this workspace are not known here: whoever knows them hands in `model.encode`.
Legend: B batch, H W pixels, h w patch grid, D width.
"""

import hashlib
import re
import socket
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import InputError
from mae.models_mae import ARCHITECTURES
from mae.patches import grid_size, normalize, patchify
from mae.weights import load_pretrained

SOURCES = ("pixels", "random", "mae:PATH", "timm:NAME", "timm:NAME@FILE")


@dataclass(frozen=True)
class Source:
    """`encode`: images uint8 [B, 3, H, W] in RGB, on any device → features [B, h, w, D]; its patch; what it is.

    weights: the SHA-256 of the file of its weights, or of the parameters themselves where no file is known.
    """

    name: str
    encode: Callable[[Tensor], Tensor]
    patch_size: int
    weights: str | None = None


def feature_source(name: str, *, device: str = "cpu", half: bool = False, seed: int = 0) -> Source:
    """The source of a name: `pixels` (patches of 16), `random` (untrained ViT-S/16), public MAE weights as `mae:PATH`
    (a file, or a folder that holds one), or any timm model as `timm:NAME`, from a file of weights as `timm:NAME@FILE`.

    `half` lets the network compute in 16 bits on a GPU. Features are float32 either way.
    """
    kind, _, rest = name.partition(":")
    if name == "pixels":
        return Source(name, lambda images: pixel_features(images.to(device)), 16)
    if name == "random":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = ARCHITECTURES["mae_vit_small_patch16"]()
        return model_source(f"random (ViT-S/16, seed {seed})", model, device=device, half=half)
    if kind == "mae" and rest:
        file = Path(rest) if Path(rest).is_file() else None
        return model_source(name, load_pretrained(rest, _architecture(Path(rest))), device=device, half=half, file=file)
    if kind == "timm" and rest:
        return _timm(name, rest, device, half)
    raise InputError(f"unknown feature source {name!r}; there are {', '.join(SOURCES)}")


def model_source(
    name: str, model: Any, *, device: str = "cpu", half: bool = False, file: str | Path | None = None
) -> Source:
    """The source of a model of this workspace: anything with `encode(images) → [B, h, w, D]` and `patch_size`.

    file: where its weights were read from, if from a file.
    """
    weights = file_digest(file) if file else _parameters_digest(model)
    model = model.to(device).eval()
    return Source(name, _on_device(model.encode, device, half), model.patch_size, weights)


def file_digest(path: str | Path) -> str:
    """What `sha256sum` prints for a file."""
    with open(path, "rb") as file:
        return f"sha256 {hashlib.file_digest(file, 'sha256').hexdigest()}"


def _parameters_digest(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return f"sha256 of the parameters {digest.hexdigest()}"


def pixel_features(images: Tensor, patch_size: int = 16) -> Tensor:
    """Raw patches as features, [B, h, w, 3·p²]: normalised, so that a cosine compares colours and not brightness."""
    h, w = grid_size(images.shape[-2], images.shape[-1], patch_size)
    return patchify(normalize(images), patch_size).unflatten(1, (h, w))


def _timm(name: str, rest: str, device: str, half: bool) -> Source:
    import timm

    model_name, _, file = rest.partition("@")
    if not timm.is_model(model_name):
        like = ", ".join(timm.list_models(f"*{model_name[:8]}*")[:4]) or "timm.list_models() names all"
        raise InputError(f"timm has no model {model_name.partition('.')[0]!r}; near it: {like}")
    if file and not Path(file).is_file():
        raise InputError(f"{file} does not exist: give the file of the weights of timm's {model_name}")
    model: Any
    options: dict[str, Any] = {"pretrained": True}  # with its classifier: without, timm would load any file at all
    try:
        options["pretrained_cfg_overlay"] = {"file": file or _weights_of(timm.get_pretrained_cfg(model_name))}
        try:
            model = timm.create_model(model_name, dynamic_img_size=True, **options)
        except TypeError:  # a model for which any size is natural
            model = timm.create_model(model_name, **options)
    except Exception as error:  # of timm, the hub, the network or the file: all mean that there are no weights
        raise InputError(_without_weights(model_name, file, error)) from error
    if not hasattr(model, "forward_intermediates"):
        raise InputError(f"timm's {model_name} hands out no features per patch: choose a vision transformer")
    model = model.to(device).eval()
    mean, std = (255 * torch.tensor(model.pretrained_cfg[k], device=device).view(3, 1, 1) for k in ("mean", "std"))

    def encode(images: Tensor) -> Tensor:
        # the last block's, after the final norm, class and register tokens taken off
        (last,) = model.forward_intermediates(
            (images.float() - mean) / std, indices=1, norm=True, output_fmt="NCHW", intermediates_only=True
        )
        last = last.permute(0, 2, 3, 1)
        return norm_after_pool(last) if isinstance(getattr(model, "norm", None), nn.Identity) else last

    norm_after_pool = getattr(model, "fc_norm", nn.Identity())  # where such a model keeps its final norm
    weights = file_digest(options["pretrained_cfg_overlay"]["file"])
    return Source(name, _on_device(encode, device, half), model.feature_info[-1]["reduction"], weights)


def _weights_of(config: Any) -> str:
    """The file with a timm model's weights: from the hub's cache if it is there, else fetched into it.

    Asked with local files first: without a network the hub's own client tries for a minute before it looks there.
    """
    from huggingface_hub import hf_hub_download

    if config is None or not config.hf_hub_id:
        raise FileNotFoundError("timm publishes none on the hub")
    try:
        return hf_hub_download(config.hf_hub_id, "model.safetensors", local_files_only=True)
    except FileNotFoundError:
        socket.create_connection(("huggingface.co", 443), timeout=10).close()  # fails at once where there is no network
        return hf_hub_download(config.hf_hub_id, "model.safetensors")


def _on_device(encode: Callable[[Tensor], Tensor], device: str, half: bool) -> Callable[[Tensor], Tensor]:
    """An encode that brings images to the device, keeps no graph and returns float32."""
    kind = torch.device(device).type

    def run(images: Tensor) -> Tensor:
        fast = torch.autocast(kind, dtype=torch.float16) if half and kind != "cpu" else nullcontext()
        with torch.no_grad(), fast:
            return encode(images.to(device)).float()

    return run


def _architecture(path: Path) -> str:
    """The architecture that a public file's name tells; base where it is silent."""
    size = re.search(r"vit_(base|large|huge)", path.name)
    if size is None:
        return "mae_vit_base_patch16"
    return next(name for name in ARCHITECTURES if f"vit_{size[1]}" in name)


def _without_weights(model_name: str, file: str, error: Exception) -> str:
    reason = str(error).strip().partition("\n")[0][:160]
    if file:
        return f"{file} does not hold the weights of timm's {model_name} ({reason})"
    return (
        f"the weights of timm's {model_name} are not on this machine ({reason}): where there is a network, run "
        f"`python -c \"import timm; timm.create_model('{model_name}', pretrained=True)\"` and copy the folder "
        f"~/.cache/huggingface here, or give a file of weights as timm:{model_name}@FILE"
    )
