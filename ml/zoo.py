"""The models that ship in checkpoints/: how a run becomes a small file, and the numbers of its card.

`checkpoints/zoo.json` holds what was measured of each, by the functions here; `siammae zoo check` measures it again.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from common.errors import InputError
from common.files import write_atomically
from mae.models_mae import positions_for
from mae.reading import read_checkpoint
from ml.checkpoints import load_model
from ml.logs import read_losses
from ml.motion import MotionPairs, motion_report
from ml.pair_models import ImageMAE
from ml.reconstruction import compare_with_copying, masking
from ml.SiamMAE import Model, build_model, prepare_model

RATIOS = (0.50, 0.75, 0.95)
COLUMNS = ("model", "copy", "copy × factor", "mean", "wrong f1")
TOLERANCE = 0.02

CARD = {"data": "Data", "recipe": "Recipe", "command": "Commands", "limits": "Limits"}
NOTE = """Errors are means over hidden patches, in the unit of the model's targets, beside f1's patch copied, that copy
times its best factor, and each patch's own mean (which nobody can know). *Shifted* pairs show one frame twice, f1's
window so many pixels beside f2's: errors of pixels normalised in each patch with 75 % hidden and, with f2 visible, how
often the decoder's last block, and the one that points best, looks at the right patch of f1. DAVIS: J&F in percent."""

Numbers = dict[str, float]


def pack(checkpoint: Path, out: Path, root: Path = Path()) -> dict[str, Any]:
    """Write the weights of a run (averaged ones, if it kept them) in half precision, for the size it was trained at.

    A file that ends in .pth gets the public names of MAE, for a model of images; any other is a checkpoint of this
    workspace without the optimiser's state. Positions stay in full precision. Nothing is overwritten.
    """
    if out.exists():
        raise InputError(f"{out} exists already and is not overwritten; name another file or move it away")
    model, record = load_model(checkpoint)
    model = at_size(model, record.get("run_config", {}).get("image_size"))
    state = {name: value if "pos_embed" in name else value.half() for name, value in model.state_dict().items()}
    log = root / "losses" / f"{record.get('run')}.txt"
    kept: dict[str, Any] = {
        name: record[name] for name in ("run", "epoch", "step", "run_config", "settings") if name in record
    }
    kept["curve"] = [line.mean for line in read_losses(log)] if log.is_file() else []
    if out.suffix == ".pth":
        if model.config["model"] != "MAE":
            raise InputError(f"{checkpoint} is a {model.config['model']}; public names (.pth) are for a MAE of images")
        state = {str(name).removeprefix("mae."): value for name, value in state.items()}
    sizes = {"args": model.config["mae"]} if out.suffix == ".pth" else {"config": model.config}
    packed = {"model": state, **sizes, **kept}
    write_atomically(out, lambda file: torch.save(packed, file))
    return packed


def open_packed(path: Path) -> tuple[Model, dict[str, Any]]:
    """The model of a file that `pack` wrote, and what the file says of its run."""
    if path.suffix == ".pth":
        return ImageMAE(prepare_model(path, arch=None)).eval(), read_checkpoint(path)
    return load_model(path)


def at_size(model: Model, size: int | None) -> Model:
    """The same model, built for images of another side: its positions as it would interpolate them each time."""
    config = model.config
    if not size or not model.of_pairs or config["mae"]["img_size"] == size:
        return model
    other = build_model({**config, "mae": {**config["mae"], "img_size": size}}).eval()
    own, grid = model.grid, other.grid
    state = {n: positions_for(v, own, grid) if "pos_embed" in n else v for n, v in model.state_dict().items()}
    other.load_state_dict(state)
    return other


def against_copying(model: Model, batches: Sequence[Mapping[str, Any]]) -> dict[str, Numbers]:
    """For each mask ratio the error on hidden patches beside that of trivial answers."""
    table = {}
    for ratio in RATIOS:
        with masking(model, ratio):
            row = compare_with_copying(model, batches)["all"]
        table[f"{ratio:.0%} hidden"] = {name: row[name] for name in COLUMNS}
    return table


def motion_numbers(model: Model, shifts: Iterable[MotionPairs]) -> dict[str, Numbers]:
    """For each shift: error of normalised pixels with 75 % hidden beside copying, and where the decoder points with f2
    visible (share of exact hits, and of those within a patch): its last block, and the one that points best. None for a
    model that does not look into f1."""
    if not model.looks_into_past:
        return {}
    table = {}
    for name, test in motion_report(model, list(shifts), mask_ratios=[0.75]).items():
        attention, errors = test["attention"]["f2 visible"], test["errors"]["0.75"]
        blocks = [found["mean"] for layer, found in attention.items() if layer.startswith("layer")]
        table[name] = {name: errors[name] for name in ("model", "copy", "copy × factor", "mean")}
        if blocks:  # a joint decoder has none
            best = max(blocks, key=lambda hits: hits["exact"])
            table[name] |= {"exact hits": blocks[-1]["exact"], "within a patch": blocks[-1]["near"]}
            table[name] |= {"exact, best block": best["exact"], "within, best block": best["near"]}
    return table


def differences(stated: Mapping[str, Any], found: Mapping[str, Any], where: str = "") -> list[str]:
    """Numbers of both that differ by more than `TOLERANCE`, in words; only what both have is compared."""
    wrong = []
    for name, value in stated.items():
        place = f"{where} · {name}" if where else name
        if name == "card":
            continue
        if isinstance(value, Mapping):
            wrong += differences(value, found.get(name, {}), place)
        elif name in found and abs(value - found[name]) > TOLERANCE:
            wrong.append(f"{place}: {value:.3f} stated, {found[name]:.3f} found")
    return wrong


def markdown(numbers: Mapping[str, Mapping[str, Numbers]]) -> str:
    """A table for each kind of measurement."""
    parts = []
    for title, rows in numbers.items():
        columns = list(next(iter(rows.values()), {}))
        lines = [f"| {title} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
        lines += [f"| {row} | {' | '.join(f'{v:.3f}' for v in cells.values())} |" for row, cells in rows.items()]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def card(name: str, stated: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    """The card of a shipped file in Markdown: what `zoo.json` says of it, its run's record, and what was measured."""
    about = stated["card"]
    curve = record.get("curve") or []
    lines = [f"# {name}", "", about["what"], ""]
    lines += [f"**{title}.** {about[key]}\n" for key, title in CARD.items() if key in about]
    if curve:
        lines += [f"**Curve.** Mean loss of an epoch in the last stage: {curve_line(curve)}.", ""]
    lines += [
        "## Measured",
        "",
        f"Again with `siammae zoo check {name}`; held-out videos and DAVIS need `--data`, `--davis`.",
    ]
    lines += ["", NOTE, "", markdown({title: rows for title, rows in stated.items() if title != "card"})]
    return "\n".join(lines)


def read_zoo(path: Path) -> dict[str, Any]:
    """What is stated of each file; an InputError where the list is missing."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}): it comes with the repository") from error


def pixels_needed(model: Model) -> int:
    """The side of the images that a model was built for."""
    return model.grid[0] * model.patch_size


def curve_line(curve: Sequence[float], count: int = 6) -> str:
    """A run's mean loss by epoch, at `count` places."""
    places = torch.linspace(0, len(curve) - 1, min(count, len(curve))).round().int().tolist()
    return ", ".join(f"{curve[n]:.3f} (epoch {n + 1})" for n in places)
