"""Where features come from: a name → a function from images to features, which brings its own normalisation along.

Checkpoints of this workspace are not known here: whoever knows them hands in `model.encode`.
Legend: B batch, H W pixels, h w patch grid, D width.
"""

import hashlib
import re
import socket
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from common.errors import InputError
from mae.models_mae import ARCHITECTURES
from mae.patches import grid_size, normalize, patchify
from mae.weights import load_pretrained


@dataclass(frozen=True)
class Source:
    """`encode`: images uint8 [B, 3, H, W] in RGB, on any device → features [B, h, w, D]; its patch; what it is.

    weights: the SHA-256 of the file of its weights, or of the parameters themselves where no file is known. model: the
    network behind it, if there is one. affinity: what compares the features of two frames, where it is no cosine
    (`evaluation.propagation.Affinity`).
    """

    name: str
    encode: Callable[[Tensor], Tensor]
    patch_size: int
    weights: str | None = None
    model: Any = None
    affinity: Callable[[Tensor, Tensor], Tensor] | None = None

    def compared_by_cosine(self, what: str) -> "Source":
        """Itself; an InputError where its features are not compared by cosines, which `what` does."""
        if self.affinity:
            raise InputError(f"{what} compares features by cosines, which those of {self.name} are not made for")
        return self


def centred(source: Source) -> Source:
    """A source with each frame's mean feature subtracted: what all patches of a frame share makes their cosines alike
    and says nothing about where one of them goes."""
    inner = source.compared_by_cosine("centring")

    def encode(images: Tensor) -> Tensor:
        features = inner.encode(images)
        return features - features.mean(dim=(1, 2), keepdim=True)

    return replace(inner, name=f"centred:{inner.name}", encode=encode)


class Kind(NamedTuple):
    """What may follow the colon of a source's name ("": nothing does), and the function that makes a source of it."""

    argument: str
    make: Callable[..., Source]


def feature_source(
    name: str, *, device: str = "cpu", half: bool = False, more: Mapping[str, Kind] | None = None
) -> Source:
    """The source of a name such as `pixels` or `timm:NAME`: one of `SOURCES`, or of `more`.

    `half` lets the network compute in 16 bits on a GPU; features are float32 all the same.
    """
    kind, _, rest = name.partition(":")
    sources = {**SOURCES, **(more or {})}
    found = sources.get(kind)
    if found is None or bool(rest) != bool(found.argument):
        raise InputError(f"unknown feature source {name!r}; there are {', '.join(names(sources))}")
    return found.make(rest, device=device, half=half)


def names(sources: Mapping[str, Kind]) -> list[str]:
    """How sources are called: `pixels`, `mae:PATH`, …"""
    return [f"{kind}:{each.argument}" if each.argument else kind for kind, each in sources.items()]


def model_source(
    name: str,
    model: Any,
    *,
    device: str = "cpu",
    half: bool = False,
    file: str | Path | None = None,
    encode: Callable[[Tensor], Tensor] | None = None,
) -> Source:
    """The source of a model of this workspace: anything with `encode(images) → [B, h, w, D]` and `patch_size`.

    file: where its weights were read from, if from a file. encode: in place of the model's own.
    """
    weights = file_digest(file) if file else _parameters_digest(model)
    model = model.to(device).eval()
    return Source(name, _on_device(encode or model.encode, device, half), model.patch_size, weights, model)


def architecture(path: str | Path, names: Iterable[str], default: str) -> str:
    """The one of the names whose size (small, base, large, huge) a file's name tells, as `vit_base` does."""
    size = re.search(r"vit_(small|base|large|huge)", Path(path).name)
    return next(name for name in names if f"vit_{size[1] if size else default}_" in name)


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


def _pixels(_: str, device: str, half: bool) -> Source:
    return Source("pixels", lambda images: pixel_features(images.to(device)), 16)


def _random(_: str, device: str, half: bool, seed: int = 0) -> Source:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ARCHITECTURES["mae_vit_small_patch16"]()
    return model_source(f"random (ViT-S/16, seed {seed})", model, device=device, half=half)


def _mae(path: str, device: str, half: bool) -> Source:
    file = Path(path) if Path(path).is_file() else None
    model = load_pretrained(path, architecture(path, ARCHITECTURES, "base"))
    return model_source(f"mae:{path}", model, device=device, half=half, file=file)


def _timm(rest: str, device: str, half: bool) -> Source:
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
        # the last block's, after the final norm, without class and register tokens
        (last,) = model.forward_intermediates(
            (images.float() - mean) / std, indices=1, norm=True, output_fmt="NCHW", intermediates_only=True
        )
        last = last.permute(0, 2, 3, 1)
        return norm_after_pool(last) if isinstance(getattr(model, "norm", None), nn.Identity) else last

    norm_after_pool = getattr(model, "fc_norm", nn.Identity())  # where such a model keeps its final norm
    weights = file_digest(options["pretrained_cfg_overlay"]["file"])
    return Source(f"timm:{rest}", _on_device(encode, device, half), model.feature_info[-1]["reduction"], weights, model)


SOURCES = {
    "pixels": Kind("", _pixels),  # patches of 16
    "random": Kind("", _random),  # an untrained ViT-S/16
    "mae": Kind("PATH", _mae),  # public weights: a file, or a folder that holds one
    "timm": Kind("NAME[@FILE]", _timm),  # any vision transformer of timm, with weights from the hub or a file
}


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
            return encode(images.to(device, non_blocking=kind == "cuda")).float()

    return run


def _without_weights(model_name: str, file: str, error: Exception) -> str:
    reason = " ".join(str(error).split())  # in one line; of a file that does not fit, with the first of its keys
    reason = reason if len(reason) <= 400 else f"{reason[:400]} …"
    if file:
        return f"{file} does not hold the weights of timm's {model_name} ({reason})"
    return (
        f"the weights of timm's {model_name} are not on this machine ({reason}): where there is a network, run "
        f"`python -c \"import timm; timm.create_model('{model_name}', pretrained=True)\"` and copy the folder "
        f"~/.cache/huggingface here, or give a file of weights as timm:{model_name}@FILE"
    )
