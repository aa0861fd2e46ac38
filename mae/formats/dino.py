"""DINO (facebookresearch/dino): a teacher and a student with heads, or the backbone alone."""

from mae.formats.family import Family
from mae.formats.mae import has_fixed_positions, is_plain_vit
from mae.formats.opening import Weights
from mae.patches import IMAGENET_MEAN

# As its evaluation normalises frames, and RSP's after it: with 0.228 where ImageNet's is 0.229.
PIXELS = dict(mean=IMAGENET_MEAN, std=(0.228, 0.224, 0.225))
_HEADS = ("head.", "dino_head.", "ibot_head.")


def _fits(weights: Weights) -> bool:
    with_head = weights.has(r"head\.last_layer\.") and not weights.has(r"blocks\.\d+\.ls1")
    return with_head or (weights.chosen in ("teacher", "student") and is_plain_vit(weights))


def _options(weights: Weights) -> dict:
    return dict(positions="scale", **PIXELS)


FAMILY = Family("DINO", _fits, options=_options, others=_HEADS, left_out="head left out")
BACKBONE = Family(
    "DINO, backbone", lambda w: is_plain_vit(w) and w.bare and not has_fixed_positions(w), options=_options
)
