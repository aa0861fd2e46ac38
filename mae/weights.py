"""Weights into models: public MAE, MAE-ST and those of other projects, loaded strictly.

A file that does not fit gets one sentence: what was found, and what to do.
"""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import torch
from torch import Tensor, nn

from common.download import download
from common.errors import InputError
from mae.formats import FAMILIES, load, split_options
from mae.formats.folding import as_mae, as_mae_st
from mae.formats.opening import FOLDER_FILES, open_weights
from mae.models_mae import ARCHITECTURES, MaskedAutoencoderViT
from mae.models_mae_st import ARCHITECTURES_ST, SpatiotemporalMAE, fuse_qkv, inflate, pixel_statistics
from mae.public import PUBLIC_WEIGHTS, PUBLIC_WEIGHTS_ST
from mae.reading import matches, misfits

_DECODER = ("decoder_embed.", "mask_token", "decoder_pos_embed", "decoder_blocks.", "decoder_norm.", "decoder_pred.")
_DECODER_ST = _DECODER + tuple(
    f"decoder_{name}" for name in ("cls_token", "pos_embed_class", "pos_embed_spatial", "pos_embed_temporal")
)


def load_pretrained(path: str | Path, arch: str | None, **overrides: Any) -> MaskedAutoencoderViT:
    """A MAE of the named architecture with the weights of a file, or of the public file that a folder holds.

    The encoder of any family of `mae.formats` will do, of a folder of timm or Transformers too; what our encoder has no
    place for is folded into its weights, and the rest is reported (`mae.formats.folding`). A decoder of pairs becomes
    the model's `cross_decoder`, for `ml.SiamMAE` to take over. arch None: whatever size the file has.

    Unless it is given, `norm_pix_loss` follows the file: what its training arguments say; else True for the public
    `mae_pretrain_*`, and for any file without a decoder (which then stays as it was initialised, with a note);
    else False, as for the public `mae_visualize_*`. Raises `InputError` for a file that does not fit to the last name.
    """
    if arch is not None and arch not in ARCHITECTURES:
        raise InputError(f"unknown architecture {arch!r}; there are {', '.join(ARCHITECTURES)}")
    asked: dict[str, Any] = {}
    if arch:
        path = _weights_file(Path(path), arch, PUBLIC_WEIGHTS)
        with torch.device("meta"):
            sizes = ARCHITECTURES[arch](**overrides).config
        asked = dict(
            asked_heads=sizes["num_heads"], decoder_asked_heads=sizes["decoder_num_heads"], img_size=sizes["img_size"]
        )
    loaded = load(path, asked=asked)
    encoder, differences = as_mae(loaded)
    decoder = loaded.decoder()
    path = loaded.weights.path
    print("; ".join([f"{path.name}: {loaded.about}", *differences]), flush=True)
    if decoder is None:
        print(f"{path.name}: the decoder starts untrained", flush=True)
    config, state = encoder.config, encoder.state_dict()
    keep = ("img_size", "norm_eps") if arch else tuple(config)
    known = {name: config[name] for name in keep if name in config}
    stated = loaded.weights.setting("norm_pix_loss")
    known["norm_pix_loss"] = (decoder is None or decoder.norm_pix_loss) if stated is None else bool(stated)
    of_mae = decoder is not None and decoder.kind == "mae"
    if decoder and of_mae:
        names = ("decoder_embed_dim", "decoder_depth", "decoder_num_heads")
        state, known = {**state, **decoder.state}, {**known, **dict(zip(names, decoder.size, strict=True))}
    model = (ARCHITECTURES[arch] if arch else MaskedAutoencoderViT)(**{**known, **overrides})
    load_strictly(model, state, allowed_missing=("decoder_pos_embed",) if of_mae else _DECODER, source=path)
    _check_heads(path, encoder.encoder_config["num_heads"], model.encoder_config["num_heads"], arch)
    model.decoder_is_pretrained = of_mae
    model.cross_decoder = None if of_mae else decoder
    return model


def load_pretrained_st(path: str | Path, arch: str, **overrides: Any) -> SpatiotemporalMAE:
    """A MAE-ST of the named architecture with the weights of a file, or of the public file that a folder holds.

    Separate q, k, v are fused. The encoder of any other model of clips will do (VideoMAE, MAE3D), and what is different
    in it then is said; that of images, of the same size, is inflated (`inflate`). The decoder then stays as it was
    initialised; so it does for a file without a decoder, with a note. How pixels are normalised, and
    `norm_pix_loss`, are what a checkpoint or an export of this workspace says, unless they are given; else as for the
    file's kind, but for a `norm_pix_loss` among the file's training arguments. Raises `InputError` for a file that does
    not fit to the last name: clips of another size or length are for the model to interpolate.
    """
    if arch not in ARCHITECTURES_ST:
        raise InputError(f"unknown architecture {arch!r}; there are {', '.join(ARCHITECTURES_ST)}")
    name = _weights_file(Path(path), arch, PUBLIC_WEIGHTS_ST)
    path, _ = split_options(name)
    weights = open_weights(path)
    if not weights.has("pos_embed_(spatial|temporal)") or FAMILIES["mae3d"].fits(weights):
        return _from_another_kind(name, arch, overrides)
    state = fuse_qkv(weights.state)
    encoder_only = not any(matches(name, _DECODER_ST) for name in state)
    if encoder_only:
        print(f"{path.name} holds an encoder only: the decoder starts untrained", flush=True)
    known: dict[str, Any] = {"norm_pix_loss": encoder_only or weights.settings.get("norm_pix_loss", True)}
    if weights.settings.get("model") == "MAE-ST":
        known = {"norm_pix_loss": weights.settings.get("norm_pix_loss", True), **pixel_statistics(weights.settings)}
    model = ARCHITECTURES_ST[arch](**{**known, **overrides})
    load_strictly(model, state, allowed_missing=_DECODER_ST if encoder_only else (), source=path)
    return model


def _from_another_kind(name: Path, arch: str, overrides: dict[str, Any]) -> SpatiotemporalMAE:
    """A MAE-ST that begins with the encoder of VideoMAE, MAE3D, or, inflated, of a model of images."""
    with torch.device("meta"):
        sizes = ARCHITECTURES_ST[arch](**overrides).config
    loaded = load(name, asked=dict(asked_heads=sizes["num_heads"], decoder_asked_heads=None))
    path, encoder = loaded.weights.path, loaded.encoder
    if not getattr(encoder, "t_patch_size", 0):
        image_arch = arch.replace("mae_st_", "mae_")
        if image_arch not in ARCHITECTURES:
            raise InputError(f"{path} holds an image MAE, and there is none of the size of {arch} to inflate")
        print(f"{path.name} holds an image MAE: its encoder is inflated, the decoder starts untrained", flush=True)
        return inflate(load_pretrained(name, image_arch), **overrides)
    state, differences = as_mae_st(loaded)
    words = "; ".join([loaded.about, *differences])
    print(f"{path.name}: {words}; the decoder starts untrained", flush=True)
    h, w = (side * encoder.patch_size for side in encoder.grid)
    known = dict(
        img_size=(h, w) if h != w else h, num_frames=encoder.steps * encoder.t_patch_size,
        t_patch_size=encoder.t_patch_size, pixel_mean=encoder.mean, pixel_std=encoder.std,
    )  # fmt: skip
    model = ARCHITECTURES_ST[arch](**{**known, **overrides})
    load_strictly(model, state, allowed_missing=_DECODER_ST, source=path)
    _check_heads(path, encoder.num_heads, sizes["num_heads"], arch)
    return model


def _check_heads(path: Path, heads: int, wanted: int, arch: str | None) -> None:
    if heads != wanted:
        raise InputError(f"{path} has attention of {heads} heads, and {arch} of {wanted}")


def download_pretrained_model(model_url: str, chkpt_dir: str | Path, **options: Any) -> Path:
    """Bring a file of weights into a folder under its name in the URL; `options` are those of `download`.

    The file must be readable as a checkpoint; a good one that is there already is kept without a request.
    """
    name = Path(unquote(urlsplit(model_url).path)).name
    if name in ("", ".."):
        raise InputError(f"{model_url} names no file; the public ones are {', '.join(PUBLIC_WEIGHTS.values())}")
    return download(model_url, Path(chkpt_dir) / name, check=open_weights, **options)


def load_strictly(
    model: nn.Module,
    state: Mapping[str, Tensor],
    *,
    allowed_missing: Collection[str] = (),
    allowed_unexpected: Collection[str] = (),
    source: str | Path,
) -> list[str]:
    """Load a state whose names and shapes are the model's, but for the allowed ones; returns which of them are missing.

    What is allowed are exact names, or prefixes that end in ".". Raises `InputError` before anything is loaded.
    """
    own = model.state_dict()
    if found := misfits(own, state, allowed_missing, allowed_unexpected):
        raise InputError(f"{source} does not fit the model ({found}){_comparison(state, own)}")
    model.load_state_dict({name: state.get(name, value) for name, value in own.items()})
    return [name for name in own if name not in state]


def _weights_file(path: Path, arch: str, public: Mapping[str, str]) -> Path:
    """The file itself, or of a folder the preferred one of the public files for an architecture."""
    if not path.is_dir() or any((path / name).is_file() for name in FOLDER_FILES):
        return path
    size = "_".join(arch.split("_")[-3:-1])  # such as vit_base
    wanted = [name for name in public if size in name]
    if not wanted:
        raise InputError(f"{path} is a folder, and there are no public weights for {arch}: give the path of a file")
    found = [name for name in wanted if (path / name).is_file()]
    if not found:
        raise InputError(f"{path} holds none of {', '.join(wanted)}: fetch {public[wanted[0]]} and put it there")
    if found[1:]:
        print(f"{path} holds {', '.join(found)}: using {found[0]}", flush=True)
    return path / found[0]


def _comparison(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """For which architecture a file seems to be, if that is another than the model's."""
    theirs, ours = _dimensions(state), _dimensions(own)
    if not theirs or theirs == ours:
        return ""
    with torch.device("meta"):  # shapes without memory
        builders: dict[str, Callable[..., nn.Module]] = {**ARCHITECTURES, **ARCHITECTURES_ST}
        names = [name for name, build in builders.items() if _dimensions(build().state_dict()) == theirs]
    return f"; the file is for {' or '.join(names) or 'a model'} of {theirs}, the model has {ours or 'other parts'}"


def _dimensions(state: Mapping[str, Tensor]) -> str:
    """The size of a vision transformer as far as its state tells."""
    depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    kernel = state.get("patch_embed.proj.weight")
    if kernel is None:
        return ""
    return f"width {kernel.shape[0]}, depth {depth}, patch {'×'.join(map(str, kernel.shape[2:]))}"
