"""The siamese masked autoencoder (Gupta, Wu, Deng, Fei-Fei 2023, "Siamese Masked Autoencoders", arXiv 2305.14344, §3).

Two frames of one video: f1, the past, is seen whole; of f2, the future, only a few patches are seen. One encoder reads
both, and a decoder predicts f2's hidden patches by looking into f1. What differs from a textbook MAE is the decoder:
its queries are all places of f2, its keys and values are f1's tokens. One f1 may have several futures, each a pair with
it: f1 is then read once.

Legend: B pasts in a batch, F futures of each (what is [B·F, …] has the futures of the first past first), N patches,
K kept (visible) patches, D width, M memory tokens, P pixels in a patch, h w patch grid.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.errors import InputError
from mae.masking import check_some_hidden, mask_noise, random_masking
from mae.models_mae import ARCHITECTURES, MAEEncoder, MaskedAutoencoderViT, noise_for
from mae.models_mae_st import ARCHITECTURES_ST, SpatiotemporalMAE, pixel_statistics
from mae.patches import grid_size, masked_loss, normalize_patches, patch_statistics
from mae.pretraining import Comparison, PretrainingModel, folded
from mae.weights import download_pretrained_model, load_pretrained, load_pretrained_st
from ml.decoders import DECODERS, CrossDecoder

__all__ = [
    "DECODERS",
    "MODELS",
    "CrossDecoder",
    "Model",
    "SiamMAE",
    "build_model",
    "download_pretrained_model",
    "prepare_model",
]

Model = PretrainingModel
ENCODERS = ("siamese", "joint")


class SiamMAE(PretrainingModel):
    """An MAE encoder and a `CrossDecoder`.

    mae: whose encoder is copied, and with `pretrained_decoder` (default: if it was loaded with one) its decoder too;
    else a new decoder of `decoder_size` (width, depth, heads). encoder_kind `siamese` reads each frame by itself with
    the same weights; `joint` reads both frames' tokens together. norm_pix_loss is mae's unless given.
    """

    STATISTICS = {
        "past": "normalised prediction, shown with mean and spread of f1's patch at the same place",
        "target": "normalised prediction, shown with mean and spread of the HIDDEN patch: part of the answer",
    }

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
        checkpointing: bool = False,
        decoder_float32: bool = False,
    ):
        super().__init__(
            mask_ratio, loss, getattr(mae, "norm_pix_loss", True) if norm_pix_loss is None else norm_pix_loss
        )
        if encoder_kind not in ENCODERS:
            raise InputError(f"encoder kind {encoder_kind!r} is unknown; there are {', '.join(ENCODERS)}")
        self.encoder_kind, self.decoder_kind = encoder_kind, decoder_kind
        self.patch_size, self.grid = mae.patch_size, mae.grid
        self.encoder = MAEEncoder(**mae.encoder_config)
        own = self.encoder.state_dict()
        self.encoder.load_state_dict({key: value for key, value in mae.state_dict().items() if key in own})
        if pretrained_decoder is None:
            taken = getattr(mae, "cross_decoder", None)
            pretrained_decoder = getattr(mae, "decoder_is_pretrained", False) or (taken and taken.kind == decoder_kind)
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
        )

    @property
    def sample_shape(self) -> tuple[int, int, int, int]:
        return 2, 3, self.grid[0] * self.patch_size, self.grid[1] * self.patch_size

    def forward(
        self, video: Tensor, *, noise: Tensor | None = None, seeds: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Pairs [B, 2, 3, H, W] (uint8, or floats in [0, 1]) → loss (scalar), prediction [B, N, P], mask [B, N].

        A past may have F futures, [B, 1 + F, 3, H, W] (`dataset_loader`'s `futures`): it is read once, and prediction
        and mask are [B·F, …], number b·F + f the f-th future of past b. mask is 1 where a patch was hidden; it follows
        from `noise` [B·F, N], or from the samples' `seeds` [B], of which the first future's mask does not depend on F,
        or else from torch's global generator. The loss is the error on hidden patches only (§3, "Loss").
        """
        video, seeds = folded(video, seeds)
        if video.ndim != 5 or video.shape[1] < 2 or video.shape[2] != 3:
            raise InputError(
                f"video has shape {list(video.shape)}; expected [B, 2, 3, H, W]: f1 and f2 in RGB, or more futures"
            )
        noise = self.draw_noise(video, seeds) if noise is None else noise
        frames = self.normalize(video)
        prediction, mask = self.predict(frames, noise)
        check_some_hidden(mask.shape[1], self.mask_ratio)
        return masked_loss(prediction, self.target(frames), mask, self.loss), prediction, mask

    def predict(self, frames: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised pixels [B, 1 + F, 3, H, W] → prediction and mask as `forward` gives them. All may be visible."""
        futures = frames.shape[1] - 1
        if futures > 1 and self.encoder_kind == "joint":
            raise InputError(
                f"a joint encoder reads f1 anew with each future, so {futures} futures cannot share it; use futures=1, "
                "or the siamese encoder"
            )
        past, future = frames[:, 0], frames[:, 1:].flatten(0, 1)
        h, w = grid_size(frames.shape[-2], frames.shape[-1], self.patch_size)
        ids_keep, mask, ids_restore = random_masking(noise_for(future, h * w, noise, None), self.mask_ratio)
        past_tokens, future_tokens = self.encode_pair(past, future, ids_keep)
        return self.decode(past_tokens, future_tokens, ids_restore, (h, w)), mask

    def encode_pair(self, past: Tensor, future: Tensor, ids_keep: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised pixels of f1 [B, 3, H, W] and the futures [B·F, …] → [B, 1 + N, D], and kept [B·F, 1 + K, D]."""
        past_tokens, future_tokens = self.encoder.tokens(past), self.encoder.tokens(future, ids_keep)
        if self.encoder_kind == "siamese":
            past_tokens, future_tokens = self.encoder.transform_together(past_tokens, future_tokens)
            return past_tokens, future_tokens
        both = self.encoder.transform(torch.cat([past_tokens, future_tokens], dim=1))
        past_tokens, future_tokens = both.split([past_tokens.shape[1], future_tokens.shape[1]], dim=1)
        return past_tokens, future_tokens

    def decode(self, past: Tensor, future: Tensor, ids_restore: Tensor, grid: tuple[int, int]) -> Tensor:
        """What `encode_pair` gave → the prediction [B·F, N, P], in full precision if `decoder_float32`."""
        if not self.decoder_float32:
            return self.decoder(past, future, ids_restore, grid)
        with torch.autocast(past.device.type, enabled=False):
            return self.decoder(past.float(), future.float(), ids_restore, grid)

    def draw_noise(self, video: Tensor, seeds: Tensor | None = None) -> Tensor:
        """Each future has its own stretch of the one stream that a sample's seed gives."""
        futures, (h, w) = video.shape[-4] - 1, grid_size(video.shape[-2], video.shape[-1], self.patch_size)
        if seeds is None:
            return torch.rand(self.pairs_in(video), h * w, device=video.device)
        return mask_noise(seeds.flatten().to(video.device), futures * h * w).reshape(-1, h * w)

    def predicted_frames(self, frames: int) -> list[int]:
        """All but the past."""
        return list(range(1, frames))

    def patches(self, pixels: Tensor) -> Tensor:
        return self.patchify(pixels[:, 1:].flatten(0, 1))

    def guessed_statistics(self, pixels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Of each place those of f1's patch there."""
        mean, spread = patch_statistics(self.patchify(pixels[:, 0]))
        futures = pixels.shape[1] - 1
        return mean.repeat_interleave(futures, dim=0), spread.repeat_interleave(futures, dim=0)

    def compare(self, video: Tensor, batch: Mapping[str, Any]) -> Comparison:
        """What is copied is f1's patch at the same place, normalised by its own statistics; `wrong f1` is the model,
        given the f1 of another video. Parts: `short` gaps, up to 26/30 s, and `long` ones."""
        pixels, seeds = self.normalize(video[:, :2]), batch["seed"]
        target, copy = self.target(pixels), normalize_patches(self.patchify(pixels[:, 0]))
        _, prediction, mask = self(video[:, :2], seeds=seeds)
        _, fooled, _ = self(torch.stack([video[strangers(batch["path"]), 0], video[:, 1]], dim=1), seeds=seeds)
        guesses = {"model": prediction, "copy": copy, "mean": torch.zeros_like(target), "wrong f1": fooled}
        short = (batch["time"][:, 1] - batch["time"][:, 0] <= 26 / 30).to(mask.device)[:, None]
        return Comparison(target, guesses, {"all": mask, "short": mask * short, "long": mask * ~short})

    def pairs_in(self, video: Tensor) -> int:
        """Each future is a pair."""
        return video.shape[:-4].numel() * (video.shape[-4] - 1)

    def encode(self, images: Tensor) -> Tensor:
        return self.encoder.encode(images)

    def patchify(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] → [B, N, P]."""
        return self.encoder.patchify(images)

    def unpatchify(self, patches: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """[B, N, P] → [B, 3, H, W]; the grid (h, w) is the model's own unless given."""
        return self.encoder.unpatchify(patches, grid)


def strangers(paths: list[str]) -> list[int]:
    """For each pair of a batch the index of a pair from another video."""
    if len(set(paths)) < 2:
        raise InputError(
            f"all pairs of a batch come from {paths[0]}; a wrong f1 needs a second video: hold out more, or give more "
            "videos"
        )
    n = len(paths)
    return [next((b + d) % n for d in range(1, n) if paths[(b + d) % n] != paths[b]) for b in range(n)]


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
    **{name.replace("_vit", ""): (_clips, dict(arch=name)) for name in ARCHITECTURES_ST},
    "mae_st_micro_patch8": (_clips, dict(
        img_size=64, patch_size=8, num_frames=8, pred_t_dim=4, embed_dim=128, depth=6, num_heads=4,
        decoder_embed_dim=128, decoder_depth=2, decoder_num_heads=4,
    )),
}  # fmt: skip
# How a model that says it is of such a kind in its `config` is built again.
KINDS: dict[str, Callable[..., Model]] = {
    "SiamMAE": lambda mae, **keywords: SiamMAE(MAEEncoder(**mae), **keywords),
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
