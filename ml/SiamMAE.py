"""The siamese masked autoencoder (Gupta, Wu, Deng, Fei-Fei 2023, "Siamese Masked Autoencoders", arXiv 2305.14344, §3).

Two frames of one video: f1, the past, is seen whole; of f2, the future, only a few patches are seen. One encoder reads
both, and a decoder predicts f2's hidden patches by looking into f1. What differs from a textbook MAE is the decoder:
its queries are all places of f2, its keys and values are f1's tokens. One f1 may have several futures, each a pair with
it: f1 is then read once.

Legend: B pasts in a batch, F futures of each (what is [B·F, …] has the futures of the first past first), N patches,
K kept (visible) patches, D width, P pixels in a patch, h w patch grid.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.errors import InputError
from mae.formats.tobo import to_public
from mae.masking import random_masking
from mae.models_mae import ARCHITECTURES, MAEEncoder, MaskedAutoencoderViT, noise_for
from mae.models_mae_st import ARCHITECTURES_ST, SpatiotemporalMAE, pixel_statistics
from mae.patches import grid_size
from mae.pretraining import PretrainingModel
from mae.weights import download_pretrained_model, load_pretrained, load_pretrained_st
from ml.decoders import DECODERS, CrossDecoder, takes_over
from ml.extensions.hiding import Hiding
from ml.pair_models import ImageMAE, PairModel

__all__ = [
    "DECODERS",
    "MODELS",
    "CrossDecoder",
    "ImageMAE",
    "Model",
    "SiamMAE",
    "build_model",
    "download_pretrained_model",
    "prepare_model",
]

Model = PretrainingModel
ENCODERS = ("siamese", "joint")


class SiamMAE(PairModel):
    """An MAE encoder and a `CrossDecoder`.

    mae: whose encoder is copied, and with `pretrained_decoder` (default: if it was loaded with one) its decoder too;
    else a new decoder of `decoder_size` (width, depth, heads). encoder_kind `siamese` reads each frame on its own with
    the same weights; `joint` reads both frames' tokens together. norm_pix_loss is mae's unless given. mask_strategy:
    which patches are hidden in training, one of `ml.extensions.hiding.STRATEGIES`. pasts: 2 for a second frame that the
    decoder reads as it reads f1, not told which is which.
    """

    looks_into_past = True

    def __init__(
        self,
        mae: MAEEncoder,
        mask_ratio: float = 0.75,
        device: torch.device | str | None = None,
        *,
        encoder_kind: str = "siamese",
        decoder_kind: str = "cross-self",
        decoder_size: tuple[int, int, int] = (256, 4, 8),
        pretrained_decoder: bool | None = None,
        norm_pix_loss: bool | None = None,
        loss: str = "mse",
        mask_strategy: str = "random",
        pasts: int = 1,
        checkpointing: bool = False,
        decoder_float32: bool = False,
    ):
        super().__init__(
            mask_ratio, loss, getattr(mae, "norm_pix_loss", True) if norm_pix_loss is None else norm_pix_loss
        )
        if encoder_kind not in ENCODERS:
            raise InputError(f"encoder kind {encoder_kind!r} is unknown; there are {', '.join(ENCODERS)}")
        if pasts not in (1, 2) or (pasts == 2 and encoder_kind == "joint"):
            raise InputError(f"pasts is {pasts} with a {encoder_kind} encoder; expected 1, or 2 with the siamese one")
        self.encoder_kind, self.decoder_kind, self.pasts = encoder_kind, decoder_kind, pasts
        self.patch_size, self.grid = mae.patch_size, mae.grid
        self.encoder = MAEEncoder(**mae.encoder_config)
        own = self.encoder.state_dict()
        self.encoder.load_state_dict({key: value for key, value in mae.state_dict().items() if key in own})
        if pretrained_decoder is None:
            taken = getattr(mae, "cross_decoder", None)
            pretrained_decoder = getattr(mae, "decoder_is_pretrained", False) or (
                taken and takes_over(decoder_kind, taken.kind)
            )
        if pretrained_decoder:
            if not isinstance(mae, MaskedAutoencoderViT):
                raise InputError("pretrained_decoder=True, but this MAE is an encoder alone; pass one with a decoder")
            self.decoder = CrossDecoder.around(mae, decoder_kind)
        else:
            dim, depth, num_heads = decoder_size
            self.decoder = CrossDecoder(
                mae.embed_dim, mae.patch_size, mae.grid,
                dim=dim, depth=depth, num_heads=num_heads, kind=decoder_kind, mlp_ratio=mae.encoder_config["mlp_ratio"],
            )  # fmt: skip
        self.encoder.checkpointing = self.decoder.checkpointing = checkpointing
        self.decoder_float32 = decoder_float32
        self.hiding = None
        if mask_strategy != "random":
            self.hiding = Hiding(mask_strategy, self)
        self.to(device)

    @property
    def config(self) -> dict[str, Any]:
        return dict(
            model="SiamMAE",
            mae=self.encoder.config,
            mask_ratio=self.mask_ratio,
            encoder_kind=self.encoder_kind,
            decoder_kind=self.decoder_kind,
            decoder_size=list(self.decoder.size),
            norm_pix_loss=self.norm_pix_loss,
            loss=self.loss,
            **({"pasts": self.pasts} if self.pasts > 1 else {}),
            **({"mask_strategy": self.hiding.name} if self.hiding else {}),
        )

    def predict(self, frames: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised pixels [B, 1 + F, 3, H, W] → prediction and mask as `forward` gives them. All may be visible."""
        futures = frames.shape[1] - self.pasts
        if futures > 1 and self.encoder_kind == "joint":
            raise InputError(
                f"a joint encoder reads f1 anew with each future, so {futures} futures cannot share it; use futures=1, "
                "or the siamese encoder"
            )
        past, future = (part.flatten(0, 1) for part in frames.split([self.pasts, futures], dim=1))
        h, w = grid_size(frames.shape[-2], frames.shape[-1], self.patch_size)
        ids_keep, mask, ids_restore = random_masking(noise_for(future, h * w, noise, None), self.mask_ratio)
        past_tokens, future_tokens = self.encode_pair(past, future, ids_keep)
        past_tokens = past_tokens.unflatten(0, (-1, self.pasts)).flatten(1, 2)  # all that f2's places look into
        return self.decode(self.decoder, [past_tokens, future_tokens], ids_restore, (h, w)), mask

    def encode_pair(self, past: Tensor, future: Tensor, ids_keep: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised pixels of f1 [B, 3, H, W] and the futures [B·F, …] → [B, 1 + N, D], and kept [B·F, 1 + K, D]."""
        past_tokens, future_tokens = self.encoder.tokens(past), self.encoder.tokens(future, ids_keep)
        if self.encoder_kind == "siamese":
            past_tokens, future_tokens = self.encoder.transform_together(past_tokens, future_tokens)
            return past_tokens, future_tokens
        both = self.encoder.transform(torch.cat([past_tokens, future_tokens], dim=1))
        past_tokens, future_tokens = both.split([past_tokens.shape[1], future_tokens.shape[1]], dim=1)
        return past_tokens, future_tokens

    def public_state_dict(self) -> dict[str, Tensor]:
        """Those of MAE's encoder, and ToBo's names for a cross-self decoder."""
        decoder = to_public(self.decoder.state_dict()) if self.decoder_kind == "cross-self" else {}
        return self.encoder.state_dict() | decoder


def prepare_model(
    chkpt_dir: str | Path, arch: str | None = "mae_vit_large_patch16", **overrides: Any
) -> MaskedAutoencoderViT:
    """A MAE with somebody's weights: see `mae.weights.load_pretrained`. chkpt_dir: the file, or its folder."""
    return load_pretrained(chkpt_dir, arch, **overrides)


def _siamese(
    *, weights: str | None, arch: str | None = None, encoder: dict[str, Any] | None = None, **keywords: Any
) -> SiamMAE:
    """A SiamMAE around a named MAE, with its weights if they are given, or with an encoder of its own size."""
    if "mask_kind" in keywords:
        raise InputError("mask_kind is for models of clips, and this is a model of pairs: leave clip_frames at 0")
    if weights:
        mae: MAEEncoder = prepare_model(weights, arch)
        if any(mae.encoder_config[name] != size for name, size in (encoder or {}).items() if name != "img_size"):
            raise InputError(f"{weights} holds an encoder of {mae.encoder_config}; the model has one of {encoder}")
    else:
        mae = MAEEncoder(**encoder) if encoder else ARCHITECTURES[str(arch)]()
    names = ("decoder_embed_dim", "decoder_depth", "decoder_num_heads")
    size = [keywords.pop(name, 0) for name in names]
    if any(size):
        named = keywords.get("decoder_size", _DECODER)
        keywords |= dict(decoder_size=tuple(x or y for x, y in zip(size, named, strict=True)), pretrained_decoder=False)
    return SiamMAE(mae, **keywords)


def _images(*, weights: str | None, arch: str, **keywords: Any) -> ImageMAE:
    """A MAE of images by name, with its weights if they are given."""
    pairs = {"encoder_kind": "siamese", "decoder_kind": "cross-self", "mask_strategy": "random", "pasts": 1}
    if any(keywords.pop(name, own) != own for name, own in pairs.items()) or "mask_kind" in keywords:
        raise InputError(f"this is a model of images: leave {', '.join(pairs)} and mask_kind alone")
    names = ("decoder_embed_dim", "decoder_depth", "decoder_num_heads", "img_size")
    sizes = {name: keywords.pop(name) for name in names if keywords.get(name)}
    return ImageMAE(prepare_model(weights, arch, **sizes) if weights else ARCHITECTURES[arch](**sizes), **keywords)


def _clips(*, weights: str | None, arch: str = "", **keywords: Any) -> SpatiotemporalMAE:
    """A MAE-ST of a named size, with weights if they are given, or of a size of its own."""
    if "decoder_kind" in keywords:
        raise InputError(
            "decoder_kind is for models of pairs, and this is a model of clips: give clip_frames, such as 16"
        )
    if weights and not arch:
        raise InputError("there are no public weights of this size; start the model from nothing")
    if weights:
        return load_pretrained_st(weights, arch, **keywords)
    return ARCHITECTURES_ST[arch](**keywords) if arch else SpatiotemporalMAE(**keywords)


_DECODER, _MAES_DECODER = (256, 4, 8), (512, 8, 16)
# Named models: what builds them, and with which keywords. tiny and small as the paper and its reproductions have them;
# base and large around MAE's own decoder, as when one starts from the public MAE weights; micro learns in minutes on a
# laptop. The MAE-ST of these sizes have 16 frames and their paper's decoder; their micro has 8 frames.
MODELS: dict[str, tuple[Callable[..., Model], dict[str, Any]]] = {
    "siammae_tiny_patch16": (_siamese, dict(arch="mae_vit_tiny_patch16")),
    "siammae_small_patch16": (_siamese, dict(arch="mae_vit_small_patch16")),
    "siammae_small_patch8": (_siamese, dict(arch="mae_vit_small_patch8")),
    "siammae_base_patch16": (_siamese, dict(arch="mae_vit_base_patch16", decoder_size=_MAES_DECODER)),
    "siammae_large_patch16": (_siamese, dict(arch="mae_vit_large_patch16", decoder_size=_MAES_DECODER)),
    "siammae_micro_patch8": (_siamese, dict(
        encoder=dict(img_size=64, patch_size=8, embed_dim=128, depth=6, num_heads=4), decoder_size=(128, 2, 4)
    )),
    **{name.replace("_vit", ""): (_images, dict(arch=name)) for name in ARCHITECTURES},
    **{name.replace("_vit", ""): (_clips, dict(arch=name)) for name in ARCHITECTURES_ST},
    "mae_st_micro_patch8": (_clips, dict(
        img_size=64, patch_size=8, num_frames=8, pred_t_dim=4, embed_dim=128, depth=6, num_heads=4,
        decoder_embed_dim=128, decoder_depth=2, decoder_num_heads=4,
    )),
}  # fmt: skip
# How a model that says it is of such a kind in its `config` is built again.
KINDS: dict[str, Callable[..., Model]] = {
    "SiamMAE": lambda mae, **keywords: SiamMAE(MAEEncoder(**mae), **keywords),
    "MAE": lambda mae, **keywords: ImageMAE(MaskedAutoencoderViT(**mae), **keywords),
    "MAE-ST": lambda **keywords: SpatiotemporalMAE(**{**pixel_statistics(keywords), **keywords}),
}


def build_model(config: str | Mapping[str, Any], *, weights: str | None = None, **overrides: Any) -> Model:
    """A model by name (one of `MODELS`) or from a `config` that a model or a checkpoint gave.

    weights: a public MAE checkpoint, or the folder where it lies, to start from (`prepare_model`); names only. A MAE-ST
    starts from a public MAE-ST or, inflated, from an image MAE (`load_pretrained_st`).
    overrides: any keyword of `SiamMAE`, or of `SpatiotemporalMAE`, such as mask_ratio or device; of both
    `decoder_embed_dim`, `decoder_depth` and `decoder_num_heads`, for a decoder of another size than the named one.
    """
    if isinstance(config, str):
        if config not in MODELS:
            raise InputError(f"model {config!r} is unknown; there are {', '.join(MODELS)}")
        build, keywords = MODELS[config]
        return build(weights=weights, **{**keywords, **overrides})
    arguments = {**config, **overrides}
    kind = arguments.pop("model", None)
    if kind not in KINDS:
        raise InputError(f"this configuration is of a model {kind!r}; expected {' or '.join(map(repr, KINDS))}")
    return KINDS[kind](**arguments)
