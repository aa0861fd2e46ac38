"""Models for `torch.hub.load(FOLDER, NAME, source="local")`, which needs torch, timm and safetensors only."""

from typing import Any

dependencies = ["torch", "timm", "safetensors"]


def siammae(weights: str | None = None, name: str = "siammae_small_patch16", **overrides: Any) -> Any:
    """A SiamMAE in evaluation mode: `model(pairs) → loss, prediction, mask`, `model.encode(images) → [B, h, w, D]`.

    weights: a checkpoint of this workspace, or any file of weights with a decoder that fits (see docs/weights.md);
    weights: a checkpoint of this workspace or any other file of weights; a decoder that is not in it starts untrained.
    Without, an untrained model of the named size. overrides: for that one, keywords of `ml.SiamMAE.SiamMAE`.
    """
    from ml.foreign import open_model
    from ml.SiamMAE import build_model

    if weights is None:
        return build_model(name, **overrides).eval()
    return open_model(weights, must_predict=False)[0]


def encoder(weights: str, kind: str | None = None, num_heads: int | None = None) -> Any:
    """The encoder of any file or folder of weights: `encode(images in uint8 or [0, 1]) → [B, h, w, D]`."""
    from mae.formats import load_encoder

    return load_encoder(weights, kind=kind, num_heads=num_heads)
