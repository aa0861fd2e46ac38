"""Small models of clips, and what the public code computed of some."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from mae.models_mae_st import SpatiotemporalMAE

GOLDEN = Path(__file__).parents[1] / "golden"
TINY = dict(
    img_size=32, patch_size=8, num_frames=8, t_patch_size=2, pred_t_dim=8, embed_dim=48, depth=2, num_heads=4,
    decoder_embed_dim=32, decoder_depth=2, decoder_num_heads=4,
)  # fmt: skip
TINY48 = dict(img_size=48, patch_size=8, embed_dim=48, depth=2, num_heads=4, decoder_embed_dim=32, decoder_depth=1,
              decoder_num_heads=4)  # fmt: skip


def recorded(name):
    figures = load_file(GOLDEN / f"{name}.safetensors")
    return figures, {k.removeprefix("state."): v for k, v in figures.items() if k.startswith("state.")}


def close(a, b, atol=1e-5):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


def small(seed=0, **kw):
    """2 × 3 places, 3 steps, nothing zero."""
    torch.manual_seed(seed)
    model = SpatiotemporalMAE(**{**TINY, "img_size": (16, 24), "num_frames": 6, "pred_t_dim": 3, **kw})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()
