"""What `siammae weights inspect` prints of a file: its kind, sizes, settings, and what can be done with it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.errors import InputError
from mae.formats import identify, load, split_options
from mae.formats.encoder import Encoder
from mae.formats.family import Loaded, encoder_state
from mae.formats.folding import as_mae
from mae.formats.opening import Weights, open_weights
from mae.public import published

_HOW = {
    "scale": "bicubic by a scale factor, as DINO",
    "size": "bicubic to the size, as MAE",
    "antialias": "bicubic to the size with antialiasing, as timm",
}


def report(name: str | Path) -> Iterator[tuple[str, str]]:
    """Pairs of a heading and its words. Raises `InputError` for what is no file of weights."""
    path, options = split_options(name)
    weights = open_weights(path)
    family = identify(weights, options.get("kind"))
    yield "kind", family.name + (f", its encoder below {weights.prefix!r}" if weights.prefix else "")
    if family.refused:
        yield "not read", family.refused
        return
    try:
        loaded = load(name)
    except InputError as error:
        yield "not read", str(error)
    else:
        yield "in short", loaded.about
        yield from _sizes(loaded)
    if weights.epoch is not None:
        yield "epoch", str(weights.epoch)
    settings = _settings(weights)
    if settings:
        yield "settings", settings
    if (row := published(weights.path.name)) is not None:
        scores = ", ".join(f"{name} {score}" for name, score in row.scores.items())
        yield (
            "published",
            f"{row.model}, {row.licence}" + (f"; {scores} ({row.protocol}; {row.cited})" if scores else ""),
        )


def _sizes(loaded: Loaded) -> Iterator[tuple[str, str]]:
    encoder: Any = loaded.encoder
    count = sum(value.numel() for value in encoder.parameters())
    total = sum(value.numel() for value in loaded.weights.state.values())
    yield "weights", f"{count / 1e6:.1f} M parameters in the encoder, {total / 1e6:.1f} M numbers in the file"
    if isinstance(encoder, Encoder):
        h, w = (side * encoder.patch_size for side in encoder.grid)
        parts = [f"{encoder.embed_dim} wide, {len(encoder.blocks)} deep, {encoder.num_heads} heads, trained at {h}×{w}"]
        if encoder.t_patch_size:
            parts.append(f"clips of {encoder.t_patch_size * encoder.steps} frames")
        parts += ["no class token"] if encoder.cls_token is None else []
        parts += [f"{encoder.reg_token.shape[1]} registers"] if encoder.reg_token is not None else []
        parts += ["LayerScale"] if "blocks.0.ls1.gamma" in encoder_state(loaded.family, loaded.weights) else []
        yield "encoder", ", ".join(parts)
        yield "pixels", f"mean {_numbers(encoder.mean)}, std {_numbers(encoder.std)}"
        yield "positions", "computed, not stored" if encoder.table == "fixed" else _HOW[encoder.interpolation]
    yield "evaluate", f"siammae eval davis --data DAVIS --source {loaded.weights.path} --out RESULTS; track likewise"
    try:
        _, differences = as_mae(loaded)
        yield "train from it", "; ".join(["siammae train --weights FILE with a model of this size", *differences])
    except InputError as error:
        yield "train from it", f"no: {error}"
    try:
        decoder = loaded.decoder()
        width, depth, heads = decoder.size if decoder else (0, 0, 0)
        words = f"its decoder, {width} × {depth} × {heads}, comes along: siammae plot FILE" if decoder else ""
        yield "draw with it", words or "no: it brings no decoder that fits ours"
    except InputError as error:
        yield "draw with it", str(error)


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:g}" for value in values)


def _settings(weights: Weights, most: int = 24) -> str:
    """The plain settings as name=value, shortened."""
    plain = {k: v for k, v in weights.settings.items() if isinstance(v, bool | int | float | str) and "." not in k}
    words = [f"{name}={str(value)[:60]}" for name, value in sorted(plain.items()) if value not in ("", None)]
    return " ".join(words[:most]) + (f" … ({len(words)} in all)" if words[most:] else "")
