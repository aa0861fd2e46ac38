"""The decoder's cross-attention as a measure of what corresponds to what (ZeroCo, An et al. 2025, arXiv 2412.09072).

A decoder that fills in f2 by looking into f1 must find where things went, so its attention maps hold a correspondence
that neither frame's features do. They are averaged over heads and layers, once with the target as f2 and once, turned
round, as f1. Token 0, the class token, draws much attention whatever is looked for; it gets no part in the maps.

Legend: F context frames, h w patch grid, N = h·w patches, D width.
"""

import torch
from torch import Tensor

from common.errors import InputError
from ml.motion import cross_attention_maps
from ml.SiamMAE import SiamMAE


class DecoderAffinity:
    """`encode` and `affinity` of a `evaluation.features.Source`, from a SiamMAE whose f2 is seen whole."""

    def __init__(self, model: SiamMAE, name: str) -> None:
        if not model.looks_into_past:
            raise InputError(f"{name} looks into no other frame; decoder: takes the cross-attention of a SiamMAE")
        if model.pasts > 1:
            raise InputError(f"{name} looks into two frames at once; decoder: takes a model that looks into one")
        if model.decoder.joint or model.encoder_kind == "joint":
            raise InputError(
                f"{name} has a {model.encoder_kind} encoder and a {model.decoder_kind} decoder; decoder: takes "
                "cross-attention between frames that were encoded apart: siamese, and any decoder but joint"
            )
        self.model = model

    def encode(self, images: Tensor) -> Tensor:
        """Frames [B, 3, H, W] → tokens [B, h, w, 2·D]: beside each patch's token stands the class token."""
        h, w = images.shape[-2] // self.model.patch_size, images.shape[-1] // self.model.patch_size
        tokens = self.model.encoder.transform(self.model.encoder.tokens(self.model.normalize(images)))
        patches, first = tokens[:, 1:], tokens[:, :1]
        return torch.cat([patches, first.expand_as(patches)], dim=-1).unflatten(1, (h, w))

    @torch.no_grad()
    def affinity(self, target: Tensor, context: Tensor) -> Tensor:
        """What `encode` gave of a target [h, w, 2·D] and of context frames [F, h, w, 2·D] → [F, h, w, h, w].

        Of each target patch the logarithm of its mean attention to each context patch: the protocol's softmax at
        temperature 1 weighs by attention itself.
        """
        h, w = target.shape[:2]
        one = _tokens(target[None])
        maps = []
        for frame in context.unbind():
            other = _tokens(frame[None])
            maps.append(0.5 * (self._attention(other, one, (h, w)) + self._attention(one, other, (h, w)).mT))
        return torch.stack(maps).clamp(min=1e-12).log().view(-1, h, w, h, w)

    def _attention(self, past: Tensor, future: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens [1, 1 + N, D] of both frames → the mean over heads and layers [N, N], of f2's places to f1's."""
        every = torch.arange(past.shape[1] - 1, device=past.device)[None]
        with cross_attention_maps(self.model) as maps:
            self.model.decode(self.model.decoder, [past, future], every, grid)
        return torch.stack([layer.mean(1)[0] for layer in maps]).mean(0)


def _tokens(encoded: Tensor) -> Tensor:
    """[1, h, w, 2·D] → [1, 1 + N, D]."""
    patches, first = encoded.flatten(1, 2).chunk(2, dim=-1)
    return torch.cat([first[:, :1], patches], dim=1)
