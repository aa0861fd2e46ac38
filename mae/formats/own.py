"""What this workspace writes: checkpoints of SiamMAE and of MAE-ST, and exported encoders."""

from typing import Any

import torch
from torch import nn

from mae.formats.family import Decoder, Family, load_into
from mae.formats.opening import Weights
from mae.formats.tobo import to_ours
from mae.models_mae import MAEEncoder

_SIZES = ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio")

_OTHERS = ("decoder", "mask_token", "hiding")  # what stands beside the encoder


def _config(weights: Weights) -> dict[str, Any] | None:
    """The encoder's keywords, where a checkpoint's or an export's settings have all of them."""
    inner = weights.settings.get("mae")
    known = inner if isinstance(inner, dict) else weights.settings
    if not all(name in known for name in _SIZES):
        return None
    return {name: known[name] for name in (*_SIZES, "norm_eps") if name in known}


def _fits(weights: Weights) -> bool:
    ours = weights.settings.get("model") == "SiamMAE" or weights.has(r"decoder\.memory_norm\.")
    return weights.has("pos_embed$") and _config(weights) is not None and (ours or _is_export(weights))


def _is_export(weights: Weights) -> bool:
    """An encoder alone with our configuration beside it; of a folder of timm, one that says that it is ours."""
    theirs = weights.settings.get("pretrained_cfg")
    if isinstance(theirs, dict) and theirs.get("tag") != "siammae":
        return False
    names = {name.split(".")[0] for name in weights.state}
    return names == {"cls_token", "pos_embed", "patch_embed", "blocks", "norm"} and "args" not in weights.settings


def _build(weights: Weights, num_heads: int | None) -> nn.Module:
    with torch.device("meta"):
        encoder = MAEEncoder(**(_config(weights) or {}))
    state = {name: value for name, value in weights.state.items() if not name.startswith(_OTHERS)}
    load_into(encoder, state, weights, FAMILY.name)
    encoder.num_heads = encoder.encoder_config["num_heads"]
    return encoder.eval()


def _decoder(family: Family, weights: Weights) -> Decoder | None:
    """A checkpoint's own decoder; an exported encoder has none."""
    state = {n.removeprefix("decoder."): v for n, v in weights.state.items() if n.startswith("decoder.")}
    if "decoder_embed_mae.weight" in weights.state:  # as exported under public names
        state = to_ours({n: v for n, v in weights.state.items() if n.startswith(("decoder_", "mask_token"))})
    if not state:
        return None
    config = weights.settings
    return Decoder(
        state, tuple(config["decoder_size"]), config["norm_pix_loss"], config["mask_ratio"], config["decoder_kind"]
    )


FAMILY = Family("SiamMAE of this workspace", _fits, build=_build, decoder=_decoder)
