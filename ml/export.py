"""Our models in other programs' formats: timm, Transformers, the public names, ONNX, and plain safetensors (JAX).

Each writer puts files into a folder and returns the lines of code that open them. What is written is read back by
`mae.formats`, with the same weights to the bit.
"""

import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from common.errors import InputError
from common.files import write_atomically, write_text
from mae.formats.hf_vitmae import to_transformers
from mae.formats.tobo import to_public
from mae.models_mae import MAEEncoder
from mae.models_mae_st import SpatiotemporalMAE
from mae.patches import IMAGENET_MEAN, IMAGENET_STD
from ml.model_card import model_card
from ml.SiamMAE import SiamMAE

Writer = Callable[[Any, Path, str], str]


def encoder_of(model: Any) -> MAEEncoder:
    """The encoder of images in a model; an InputError for a model of clips."""
    if isinstance(model, SpatiotemporalMAE):
        raise InputError("this is a model of clips, and the format has none: --to public, hf and onnx write it")
    return model.encoder if isinstance(model, SiamMAE) else model


def to_timm(model: Any, folder: Path, licence: str = "other") -> str:
    """config.json and model.safetensors, as `timm.create_model("local-dir:FOLDER", pretrained=True)` opens them.

    The configuration has our pixel statistics: with timm's defaults for the architecture, mean and std would be 0.5.
    """
    encoder = encoder_of(model)
    sizes = encoder.config
    _refuse_other_eps(sizes, "timm's models")
    height, width = image_size(encoder)
    config = dict(
        architecture=_architecture(sizes), num_classes=0, num_features=encoder.embed_dim, global_pool="token",
        model_args={**sizes, "num_classes": 0, "global_pool": "token", "dynamic_img_size": True},
        pretrained_cfg=dict(
            tag="siammae", license=licence, custom_load=False, input_size=[3, height, width], fixed_input_size=False,
            interpolation="bicubic", crop_pct=1.0, crop_mode="center", mean=list(IMAGENET_MEAN), std=list(IMAGENET_STD),
            num_classes=0, pool_size=None, first_conv="patch_embed.proj", classifier="head",
        ),
    )  # fmt: skip
    _write_json(folder / "config.json", config)
    _write_tensors(folder / "model.safetensors", encoder_state(encoder), {"format": "pt"})
    return (
        f'import timm\nmodel = timm.create_model("local-dir:{folder.name}", pretrained=True).eval()\n'
        f"features = model.forward_features(pixels)  # ImageNet's mean and std; token 0 is the class token"
    )


def to_hf(model: Any, folder: Path, licence: str = "other") -> str:
    """A folder of Transformers: ViTMAE with the decoder where the model is an MAE, else the encoder as a ViT.

    Transformers has no MAE-ST: of one it is our configuration and the weights under their public names, for here.
    """
    if isinstance(model, SpatiotemporalMAE):
        _write_json(folder / "config.json", {"model_type": "mae_st", **model.config})
        _write_tensors(folder / "model.safetensors", public_state(model), {"format": "pt"})
        return f'from mae.formats import load_encoder\nencoder = load_encoder("{folder.name}")  # encode(images)'
    encoder = encoder_of(model)
    sizes, decoder = encoder.config, getattr(model, "decoder_config", None)
    height, width = image_size(encoder)
    if height != width:
        raise InputError(f"Transformers' models want square images, and this one was trained at {height}×{width}")
    config: dict[str, Any] = dict(
        architectures=["ViTModel"], model_type="vit", hidden_size=sizes["embed_dim"], image_size=height,
        num_hidden_layers=sizes["depth"], num_attention_heads=sizes["num_heads"], patch_size=sizes["patch_size"],
        intermediate_size=int(sizes["embed_dim"] * sizes["mlp_ratio"]), layer_norm_eps=sizes.get("norm_eps", 1e-6),
        hidden_act="gelu", qkv_bias=True, num_channels=3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    if decoder:
        config |= dict(
            architectures=["ViTMAEForPreTraining"], model_type="vit_mae", mask_ratio=0.75,
            norm_pix_loss=model.norm_pix_loss, decoder_hidden_size=decoder["decoder_embed_dim"],
            decoder_num_hidden_layers=decoder["decoder_depth"],
            decoder_num_attention_heads=decoder["decoder_num_heads"],
            decoder_intermediate_size=int(decoder["decoder_embed_dim"] * sizes["mlp_ratio"]),
        )  # fmt: skip
    _write_json(folder / "config.json", config)
    pixels = dict(image_mean=list(IMAGENET_MEAN), image_std=list(IMAGENET_STD), size=dict(height=height, width=width))
    kind = dict(
        image_processor_type="ViTImageProcessor", do_resize=True, resample=3, do_rescale=True, do_normalize=True
    )
    _write_json(folder / "preprocessor_config.json", {**kind, "rescale_factor": 1 / 255, **pixels})
    state = encoder_state(model if decoder else encoder)
    _write_tensors(folder / "model.safetensors", to_transformers(state, "vit." if decoder else ""), {"format": "pt"})
    name = "ViTMAEForPreTraining" if decoder else "ViTModel"
    return (
        f'from transformers import {name}\nmodel = {name}.from_pretrained("{folder.name}").eval()\n'
        "outputs = model(pixels, interpolate_pos_encoding=True)  # ImageNet's mean and std"
    )


def to_public_names(model: Any, folder: Path, licence: str = "other") -> str:
    """model.pth under public names: MAE's, MAE-ST's (q, k, v apart), and ToBo's of a cross-self decoder."""
    state, config = public_state(model), model.config
    write_atomically(folder / "model.pth", lambda file: torch.save({"model": state, "config": config}, file))
    return f'import torch\nstate = torch.load("{folder.name}/model.pth", weights_only=True)["model"]'


def public_state(model: Any) -> dict[str, Tensor]:
    """The weights under the names of public code; of a decoder that no public code has, the encoder alone."""
    if isinstance(model, SpatiotemporalMAE):
        return {name: value.detach().cpu().contiguous() for name, value in model.public_state_dict().items()}
    state = encoder_state(encoder_of(model))
    if isinstance(model, SiamMAE) and model.decoder_kind == "cross-self":
        state |= to_public({name: value.detach().cpu() for name, value in model.decoder.state_dict().items()})
    return state


def to_jax(model: Any, folder: Path, licence: str = "other") -> str:
    """encoder.safetensors, which `ml.jax_encoder` and `--source jax:FILE` read."""
    encoder = encoder_of(model)
    about = {name: str(value) for name, value in encoder.config.items()}
    _write_tensors(folder / "encoder.safetensors", encoder_state(encoder), about)
    return (
        f'from ml.jax_encoder import encode, load\nparams = load("{folder.name}/encoder.safetensors")\n'
        "features = encode(params, images)  # uint8 or [0, 1], [B, 3, H, W]"
    )


class _Encode(nn.Module):
    """What ONNX gets: `encode` as the forward pass, of images in uint8."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model.encode(images)


def to_onnx(model: Any, folder: Path, licence: str = "other") -> str:
    """model.onnx: images, uint8 [B, 3, H, W] of any size that the patch divides, to features, float32 [B, h, w, D]."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(f"ONNX needs packages that are not here ({error}): pip install 'siammae[onnx]'") from error
    patch = model.patch_size
    height, width = (max(2, side) * patch for side in model.grid)
    images = torch.zeros(2, 3, height, width + patch, dtype=torch.uint8)
    h, w = (patch * torch.export.Dim(name, min=2, max=4096 // patch) for name in ("h", "w"))
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # about the exporter's own insides
        program = torch.onnx.export(
            _Encode(model).eval(), (images,), dynamo=True, verbose=False,
            dynamic_shapes={"images": {0: torch.export.Dim("batch"), 2: h, 3: w}},
            input_names=["images"], output_names=["features"],
        )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    assert program is not None
    program.save(str(folder / "model.onnx"))
    return (
        f'import onnxruntime\nsession = onnxruntime.InferenceSession("{folder.name}/model.onnx")\n'
        '(features,) = session.run(None, {"images": images})  # uint8 [B, 3, H, W] → [B, h, w, D]'
    )


WRITERS: dict[str, Writer] = {
    "timm": to_timm, "hf": to_hf, "public": to_public_names, "onnx": to_onnx, "jax": to_jax,
}  # fmt: skip
LIBRARIES = {"timm": "timm", "hf": "transformers", "public": "pytorch", "onnx": "onnx", "jax": "jax"}


def write_folder(
    model: Any, folder: Path, to: str, record: dict[str, Any], *, scores: Iterable[str] = (), licence: str = "other"
) -> None:
    """A format's files in a new folder, with a model card (README.md) made of the run's record; all or nothing."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        use = WRITERS[to](model, temporary, licence).replace(temporary.name, folder.name)
        card = model_card(model.config, record, use=use, library=LIBRARIES[to], licence=licence, scores=scores)
        write_text(temporary / "README.md", card)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_file(model: Any, path: Path) -> None:
    """One file of weights with the configuration inside: .safetensors, or .pth or .pt with the weights under "model".

    Of a model of pairs it is the encoder, under timm's names (which are MAE's); a MAE-ST is written whole.
    """
    clips = isinstance(model, SpatiotemporalMAE)
    weights = public_state(model) if clips else encoder_state(encoder_of(model))
    config = model.config if clips else encoder_of(model).config
    if path.suffix.lower() == ".safetensors":
        _write_tensors(path, weights, {key: str(value) for key, value in config.items()})
    else:
        write_atomically(path, lambda file: torch.save({"model": weights, "config": config}, file))


def encoder_state(module: nn.Module) -> dict[str, Tensor]:
    """A module's weights, contiguous and on the CPU."""
    return {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}


def image_size(encoder: Any) -> tuple[int, int]:
    """(H, W) of the images in training."""
    h, w = encoder.grid
    return h * encoder.patch_size, w * encoder.patch_size


def _architecture(sizes: dict[str, Any]) -> str:
    """timm's model of this width and depth; the arguments beside it decide all sizes."""
    named = {(192, 12): "tiny", (384, 12): "small", (768, 12): "base", (1024, 24): "large", (1280, 32): "huge"}
    size = named.get((sizes["embed_dim"], sizes["depth"]), "base")
    return f"vit_{size}_patch{14 if size == 'huge' else 16}_224"


def _refuse_other_eps(sizes: dict[str, Any], whose: str) -> None:
    if sizes.get("norm_eps", 1e-6) != 1e-6:
        raise InputError(f"LayerNorm's ε is {sizes['norm_eps']:g} in this model and 1e-6 in {whose}: use --to hf")


def _write_tensors(path: Path, tensors: dict[str, Tensor], about: dict[str, str]) -> None:
    data = save(tensors, metadata=about)
    write_atomically(path, lambda file: file.write(data))


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=2) + "\n")
