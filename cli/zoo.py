"""siammae zoo check|measure|pack: the models that ship in checkpoints/, and the numbers of their cards."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from common.errors import InputError
from common.files import write_text

if TYPE_CHECKING:
    from ml.SiamMAE import Model

ZOO = Path(__file__).parents[1] / "checkpoints" / "zoo.json"
DAVIS_ROW = "dino, short side 240"


def main(
    action: Annotated[Literal["check", "measure", "pack"], tyro.conf.Positional],
    models: Annotated[tuple[str, ...], tyro.conf.Positional] = (),
    data: Path | None = None,
    davis: Path | None = None,
    out: Path | None = None,
    root: Path = Path(),
) -> None:
    """Measure the shipped models again and compare with what their cards state (check), state it anew (measure), or
    make a small file of a run (pack).

    What is always measured: held-out pairs of the built-in clips, and windows of their frames shifted by a known way.

    Args:
        action: what to do
        models: files in checkpoints/, such as siammae_micro.pt; without any, all. pack: one run, or <run>/<epoch>
        data: held-out videos, in any form, for the numbers on natural video
        davis: DAVIS, for J&F
        out: pack: the file to write; .pth gives the public names of MAE
        root: folder that holds checkpoints/ and losses/ of the run
    """
    if action == "pack":
        if len(models) != 1 or out is None:
            raise InputError("pack takes one run and --out FILE, such as: siammae zoo pack RUN --out small.pt")
        from ml.checkpoints import find_checkpoint
        from ml.zoo import pack

        packed = pack(find_checkpoint(models[0], root), out, root)
        print(f"{out}: {out.stat().st_size / 1e6:.1f} MB, after {packed.get('step', 0):,} steps")
        return
    from ml.zoo import card, differences, markdown, open_packed, read_zoo

    stated = read_zoo(ZOO)
    wrong: list[str] = []
    for name in models or tuple(stated):
        if name not in stated and action == "check":
            raise InputError(f"{name} is not in {ZOO}; there are {', '.join(stated)}")
        model, record = open_packed(ZOO.parent / name)
        found = _measure(model, ZOO.parent / name, data, davis)
        print(f"\n{name}\n\n{markdown(found)}")
        wrong += differences(stated.get(name, {}), found, name) if action == "check" else []
        stated[name] = {**stated.get(name, {}), **found}
        if action == "measure" and "card" in stated[name]:
            write_text((ZOO.parent / name).with_suffix(".md"), card(name, stated[name], record))
    if action == "measure":
        write_text(ZOO, json.dumps(stated, indent=1, ensure_ascii=False) + "\n")
    elif wrong:
        raise InputError("what is measured differs from what is stated:\n" + "\n".join(wrong))
    else:
        left_out = [flag for flag, given in (("--data", data), ("--davis", davis)) if given is None]
        print("all that was measured is within 0.02 of what the cards state", end="")
        print(f"; not measured without {' and '.join(left_out)}: the rest" if left_out else "")


def _measure(model: "Model", path: Path, data: Path | None, davis: Path | None) -> dict[str, Any]:
    """By kind of measurement; natural video and DAVIS only where they are given."""
    import tempfile

    from dataset_loader import builtin_clips
    from dataset_loader.preparing.cutting import cut_in_time

    with tempfile.TemporaryDirectory() as folder:
        _, late = cut_in_time(builtin_clips(), Path(folder))
        found = _on_videos(model, late, "built-in clips, last 30 %")
    if data is not None:
        found |= _on_videos(model, data, "held-out videos")
    if davis is not None:
        sources = {DAVIS_ROW: str(path), f"{DAVIS_ROW}, centred": f"centred:{path}"}
        found["DAVIS"] = {row: _davis(source, davis) for row, source in sources.items()}
    return found


def _on_videos(model: "Model", videos: Path | Sequence[Path], title: str) -> dict[str, Any]:
    from cli.motion import frames
    from cli.wiring import fixed_dataset, fixed_loader
    from ml.config import RunConfig
    from ml.motion import SHIFTS, shifted_pairs
    from ml.zoo import against_copying, motion_numbers, pixels_needed

    size = pixels_needed(model)
    config = RunConfig().replace(image_size=size, batch_size=32)
    dataset = fixed_dataset(config, videos, visits=4 if isinstance(videos, Path) else 16)
    images = frames(videos, size + 2 * max(SHIFTS), 96)
    shifts = [shifted_pairs(images, shift, seed=shift) for shift in (8, 16)]
    motion = motion_numbers(model, shifts)
    pairs = against_copying(model, list(fixed_loader(config, dataset)))
    return {title: pairs, **({f"{title}, shifted": motion} if motion else {})}


def _davis(source: str, data: Path) -> dict[str, float]:
    """J&F and its parts, in percent, on all sequences of DAVIS-2016's list."""
    from cli.feature_sources import open_source
    from evaluation.benchmarks.davis import Davis
    from evaluation.run import evaluate

    benchmark = Davis(data, year=2016)
    result = evaluate(benchmark, open_source(source, Path(), "cpu", False), benchmark.protocol("dino", size="short240"))
    return {name: 100 * float(result.row[name]) for name in ("J&F-Mean", "J-Mean", "F-Mean")}
