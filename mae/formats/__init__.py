"""Weights of other projects, recognised by their names: `load_encoder`.

A small file for each kind of families, and the table of all of them here. To add one: a `Family`, a line below.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from common.errors import InputError
from mae.formats import clips, dino, dinov3, hf_vitmae, mae, own, pairs, refused, replicate, timm_vit, tobo
from mae.formats.family import Decoder, Family, Loaded, build_encoder, describe
from mae.formats.opening import Weights, open_weights
from mae.reading import few

__all__ = ["FAMILIES", "Decoder", "Family", "Loaded", "identify", "load", "load_encoder", "split_options"]

# The first that fits is it: those with marks of their own before those that only have a vision transformer's names.
FAMILIES: dict[str, Family] = {
    **{family.name: family for family in refused.FAMILIES},
    "own": own.FAMILY,
    "dinov3": dinov3.FAMILY,
    "replicate": replicate.FAMILY,
    "eleander": pairs.ELEANDER,
    "rsp": pairs.RSP,
    "tobo": tobo.FAMILY,
    "catmae": pairs.CATMAE,
    "cropmae": pairs.CROPMAE,
    "mae3d": clips.MAE3D,
    "mae_st": clips.MAE_ST,
    "videomae": clips.VIDEOMAE,
    "vitmae": hf_vitmae.VITMAE,
    "hf_videomae": hf_vitmae.VIDEOMAE,
    "vit": hf_vitmae.VIT,
    "tcore": dino.TCORE,
    "dinov2": dino.DINOV2,
    "mae": mae.FAMILY,
    "dino": dino.DINO,
    "timm": timm_vit.FAMILY,
    "dino_backbone": dino.BACKBONE,
    "mae_encoder": mae.ENCODER,
    "plain": mae.PLAIN,
}


def load_encoder(
    path: str | Path, *, kind: str | None = None, num_heads: int | None = None, say: Callable[[str], object] = print
) -> Any:
    """The encoder in a file or folder of weights of any known family, in evaluation mode.

    It has `encode(images) → [B, h, w, D]` for uint8 images or floats in [0, 1], `patch_size`, and brings its own pixel
    statistics and way to interpolate positions. kind: a name of `FAMILIES`, where the file does not tell; num_heads:
    where neither the file nor its size tells. What was found is printed in one line. Raises `InputError` for what is no
    such file, or does not fit.
    """
    loaded = load(path, kind=kind, num_heads=num_heads)
    say(f"{split_options(path)[0].name}: {loaded.about}")
    return loaded.encoder


def load(
    path: str | Path, *, kind: str | None = None, num_heads: int | None = None, asked: Mapping[str, Any] | None = None
) -> Loaded:
    """What `load_encoder` reads, with its family and what is said about it.

    asked: settings that hold where the file tells nothing else, such as `asked_heads` and `img_size` of a model that is
    to take its weights.
    Options may follow the path after commas: `FILE,num_heads=6,decoder_num_heads=8,kind=dino`.
    """
    path, options = split_options(path)
    kind, num_heads = kind or options.pop("kind", None), num_heads or options.get("num_heads")
    weights = open_weights(path)
    weights.settings = {**(asked or {}), **weights.settings, **options}
    family = identify(weights, kind)
    if family.refused:
        raise InputError(f"{path} holds {family.name}: {family.refused}")
    try:
        encoder = family.build(weights, num_heads) if family.build else build_encoder(family, weights, num_heads)
    except InputError:
        raise
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:  # of odd shapes
        shapes = (f"{name} {list(value.shape)}" for name, value in weights.state.items())
        raise InputError(f"{path} looks like {family.name}, but does not fit; it begins with {few(shapes)}") from error
    return Loaded(family, weights, encoder, describe(family, weights, encoder))


def identify(weights: Weights, kind: str | None = None) -> Family:
    """The family of a file, by its names or as given."""
    if kind is not None:
        if kind not in FAMILIES:
            raise InputError(f"kind {kind!r} is unknown; there are {', '.join(FAMILIES)}")
        return FAMILIES[kind]
    found = next((family for family in FAMILIES.values() if family.fits(weights)), None)
    if found is None:
        known = (name for name, family in FAMILIES.items() if not family.refused)
        raise InputError(
            f"{weights.path} holds weights of no family known here; expected a vision transformer's (patch_embed.…, "
            f"blocks.0.attn.…), found {few(weights.state, 6)}; the kinds are {', '.join(known)}"
        )
    return found


def split_options(path: str | Path) -> tuple[Path, dict[str, Any]]:
    """`FILE,num_heads=6,kind=dino` → the file and the options; a name with commas that exists is taken as it is."""
    if Path(path).exists():
        return Path(path), {}
    file, *words = str(path).split(",")
    options: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if name in ("num_heads", "decoder_num_heads") and value.isdecimal():
            options[name] = int(value)
        elif name == "kind" and equals:
            options[name] = value
        else:
            raise InputError(f"{path}: {word!r} is no option of a file; write FILE,num_heads=6 or FILE,kind=dino")
    return Path(file), options
