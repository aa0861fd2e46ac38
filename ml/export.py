"""Our models in other programs' formats: timm, Transformers, the public names, ONNX, and plain safetensors (JAX).

Each writer puts files into a folder and returns the lines of code that open them. What is written is read back by
`mae.formats`, with the same weights to the bit.
"""

import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from common.errors import InputError
from common.files import write_atomically, write_text
from mae.formats.hf_vitmae import to_transformers
from mae.models_mae import MAEEncoder
from mae.patches import IMAGENET_MEAN, IMAGENET_STD
from ml.model_card import model_card
from ml.SiamMAE import Model

Exportable = Model | MAEEncoder
Writer = Callable[[Any, Path, str], str]


def to_timm(model: Exportable, folder: Path, licence: str = "other") -> str:
    """config.json and model.safetensors, as `timm.create_model("local-dir:FOLDER", pretrained=True)` opens them.

    The configuration has our pixel statistics: with timm's defaults for the architecture, mean and std would be 0.5.
    """
    encoder = model.image_encoder()
    sizes = encoder.encoder_config
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
    state = {name: value for name, value in encoder.state_dict().items() if not name.startswith(("decoder_", "mask_"))}
    _write_tensors(folder / "model.safetensors", on_cpu(state), {"format": "pt"})
    return (
        f'import timm\nmodel = timm.create_model("local-dir:{folder.name}", pretrained=True).eval()\n'
        f"features = model.forward_features(pixels)  # ImageNet's mean and std; token 0 is the class token"
    )


def to_hf(model: Exportable, folder: Path, licence: str = "other") -> str:
    """A folder of Transformers: ViTMAE with the decoder where the model is an MAE, else the encoder as a ViT.

    Transformers has no MAE-ST: of one it is our configuration and the weights under their public names, for here.
    """
    if own_type := getattr(model, "model_type", ""):
        _write_json(folder / "config.json", {"model_type": own_type, **model.config})
        _write_tensors(folder / "model.safetensors", on_cpu(model.public_state_dict()), {"format": "pt"})
        return f'from mae.formats import load_encoder\nencoder = load_encoder("{folder.name}")  # encode(images)'
    encoder = model.image_encoder()
    sizes, decoder = encoder.config, getattr(encoder, "decoder_config", None)
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
            norm_pix_loss=encoder.norm_pix_loss, decoder_hidden_size=decoder["decoder_embed_dim"],
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
    state = on_cpu(encoder.state_dict())
    _write_tensors(folder / "model.safetensors", to_transformers(state, "vit." if decoder else ""), {"format": "pt"})
    name = "ViTMAEForPreTraining" if decoder else "ViTModel"
    return (
        f'from transformers import {name}\nmodel = {name}.from_pretrained("{folder.name}").eval()\n'
        "outputs = model(pixels, interpolate_pos_encoding=True)  # ImageNet's mean and std"
    )


def to_public_names(model: Exportable, folder: Path, licence: str = "other") -> str:
    """model.pth under public names: MAE's, MAE-ST's (q, k, v apart), and ToBo's of a cross-self decoder."""
    checkpoint = {"model": on_cpu(model.public_state_dict()), "config": model.config}
    write_atomically(folder / "model.pth", lambda file: torch.save(checkpoint, file))
    return f'import torch\nstate = torch.load("{folder.name}/model.pth", weights_only=True)["model"]'


def to_jax(model: Exportable, folder: Path, licence: str = "other") -> str:
    """encoder.safetensors, which `ml.jax_encoder` and `--source jax:FILE` read."""
    encoder = model.image_encoder()
    about = {name: str(value) for name, value in encoder.config.items()}
    _write_tensors(folder / "encoder.safetensors", on_cpu(encoder.state_dict()), about)
    return (
        f'from ml.jax_encoder import encode, load\nparams = load("{folder.name}/encoder.safetensors")\n'
        "features = encode(params, images)  # uint8 or [0, 1], [B, 3, H, W]"
    )


class _Encode(nn.Module):
    """What ONNX gets: `encode` as the forward pass, of images in uint8."""

    def __init__(self, model: Exportable):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model.encode(images)


def to_onnx(model: Exportable, folder: Path, licence: str = "other") -> str:
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
    model: Exportable,
    folder: Path,
    to: str,
    record: dict[str, Any],
    *,
    scores: Iterable[str] = (),
    licence: str = "other",
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


def write_file(model: Exportable, path: Path) -> str:
    """One file of weights with the configuration inside: .safetensors, or .pth or .pt with the weights under "model".

    Of a model of pairs it is the encoder, under timm's names (which are MAE's); a MAE-ST is written whole. Returns
    which it is, in words.
    """
    weights, config, about = model.export_state()
    weights = on_cpu(weights)
    if path.suffix.lower() == ".safetensors":
        _write_tensors(path, weights, {key: str(value) for key, value in config.items()})
    else:
        write_atomically(path, lambda file: torch.save({"model": weights, "config": config}, file))
    return about


def on_cpu(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights as they are written: contiguous and on the CPU."""
    return {name: value.detach().cpu().contiguous() for name, value in state.items()}


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
