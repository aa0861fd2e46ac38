"""siammae uncertainty RUN --data VIDEOS --out DIR: how sure a model is of its predictions, and whether it is right"""

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

if TYPE_CHECKING:
    from dataset_loader import PairDataset, PairLoader
    from ml.extensions.uncertainty import Member, VarianceHeads


def main(
    checkpoint: Annotated[str, tyro.conf.Positional],
    data: Path,
    out: Path,
    train_data: Path | None = None,
    heads: Path | None = None,
    ensemble: tuple[str, ...] = (),
    steps: int = 500,
    batch_size: int = 16,
    visits: int = 4,
    draws: int = 8,
    mask_ratio: float | None = None,
    seed: int = 0,
    root: Path = Path(),
    device: str | None = None,
) -> None:
    """Measure how well uncertainties of a model's predictions rank its errors and have their size.

    Variance heads (of a patch, of a pixel) are trained on the frozen model, which takes minutes on a CPU. Beside them:
    the spread over visible sets, the error without the right f1, and the controls: constant, texture of f1, |f1 − f2|.
    Half of the videos calibrates one factor, the other half measures.

    Args:
        checkpoint: a run, <run>/<epoch>, or a file
        data: held-out videos, in any form
        out: folder, new, for uncertainty.json and .md, heat.png, curves.png and the trained heads.pt
        train_data: videos to train the heads on; default: a third of the videos of data, which then measure nothing
        heads: trained heads, in place of training
        ensemble: further checkpoints, such as other seeds: the variance of all of them together as well
        steps: updates of the heads; 0: no heads
        batch_size: pairs in each
        visits: pairs from each video of data
        draws: visible sets of which the predictions spread
        mask_ratio: another one than in training
        seed: of the heads and their pairs
        root: folder that holds checkpoints/
        device: cuda, mps, cpu; default: the best there is
    """
    from common.errors import InputError
    from dataset_loader import make_loader
    from evaluation.features import file_digest
    from ml.checkpoints import find_checkpoint, load_model
    from ml.devices import best_device
    from ml.extensions.uncertainty import Evidence, Member, load_heads, uncertainty_maps
    from ml.reconstruction import first_samples

    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out} holds files already and is not overwritten; name another folder")
    if steps < 0 or min(batch_size, visits, draws) < 1:
        raise InputError(
            f"steps {steps} must be at least 0; batch_size {batch_size}, visits {visits}, draws {draws}, 1"
        )
    paths = [find_checkpoint(name, root) for name in (checkpoint, *ensemble)]
    models: list[Any] = [load_model(path, best_device(device))[0] for path in paths]
    if not all(model.looks_into_past for model in models):
        raise InputError(f"{' or '.join(map(str, paths))} is no SiamMAE; uncertainty is that of a model of pairs")
    size = models[0].grid[0] * models[0].patch_size
    held_out, taken = _held_out(data, size, visits, share=not (train_data or heads) and steps > 0)
    of_training = _of_training(train_data, data, size, batch_size, seed) if train_data else held_out
    members: list[Member] = []
    for model, path in zip(models, paths, strict=True):
        model.mask_ratio = model.mask_ratio if mask_ratio is None else mask_ratio
        own = None
        if heads and path == paths[0]:
            own = load_heads(heads, file_digest(path)).to(best_device(device))
        elif steps:
            batches = _batches(make_loader(of_training, batch_size), taken)
            file = out / ("heads.pt" if path == paths[0] else f"heads_{len(members)}.pt")
            own = _trained_heads(model, path, batches, steps, seed, file)
        members.append(Member(model, own))
    evidence = Evidence()
    loader = make_loader(held_out, max(2, batch_size), shuffle=False, drop_last=False)
    for batch in _only(loader, lambda path: path not in taken):
        evidence.add(*uncertainty_maps(members, batch, draws=draws), batch["path"])
    about = {
        "checkpoint": str(checkpoint), "ensemble": list(ensemble), "mask_ratio": models[0].mask_ratio, "draws": draws,
        "videos": len(set(evidence.videos)), "hidden patches": len(evidence.videos), "maps": evidence.measure(),
    }  # fmt: skip
    _write(out, about, members, first_samples(_only(loader, lambda path: path not in taken), 4))


def _held_out(data: Path, size: int, visits: int, share: bool) -> tuple["PairDataset", set[str]]:
    """The videos of --data, and which of them train the heads: every third if they share them, else none."""
    from common.errors import InputError
    from dataset_loader import get_kinetics_dataset

    dataset = get_kinetics_dataset(data, image_size=size, augment=False, visits=visits)
    names = sorted(dataset.paths)
    taken = set(names[::3]) if share else set()
    if len(names) - len(taken) < 2:
        raise InputError(
            f"{data} has {len(names)} videos; needed are 2 to measure on, or 3 if heads are trained on them"
        )
    return dataset, taken


def _of_training(train_data: Path, data: Path, size: int, batch_size: int, seed: int) -> "PairDataset":
    """The videos of --train-data, none of which measures, visited so often that they fill a batch."""
    from dataset_loader import check_disjoint, get_kinetics_dataset

    check_disjoint(train_data, data)
    dataset = get_kinetics_dataset(train_data, image_size=size, seed=seed)
    dataset.visits = max(1, -(-batch_size // len(dataset.paths)))
    return dataset


def _trained_heads(
    model: Any, path: Path, batches: Iterator[dict[str, Any]], steps: int, seed: int, file: Path
) -> "VarianceHeads":
    """Train heads on a model that was read from `path`, and keep them in a file that says whose they are."""
    from evaluation.features import file_digest
    from ml.extensions.uncertainty import save_heads, train_heads

    heads = train_heads(model, batches, steps=steps, seed=seed, told=_teller(path, steps))
    about = {"weights": file_digest(path), "steps": steps, "seed": seed, "mask_ratio": model.mask_ratio}
    save_heads(file, heads, about)
    return heads


def _write(out: Path, about: dict[str, Any], members: list["Member"], samples: list[dict[str, Any]]) -> None:
    """Numbers, table and pictures of what was measured."""
    from common.files import write_atomically
    from ml.extensions.uncertainty_figure import curves_figure, heat_figure, measures_table
    from ml.plots import save_figure

    table = measures_table(about["maps"])
    print(table)
    write_atomically(out / "uncertainty.json", lambda file: file.write(json.dumps(about, indent=1).encode()))
    write_atomically(out / "uncertainty.md", lambda file: file.write(table.encode()))
    save_figure(heat_figure(members, samples, draws=about["draws"]), out / "heat.png", dpi=150)
    save_figure(curves_figure(about["maps"]), out / "curves.png")
    print(f"numbers: {out / 'uncertainty.json'}, pictures: {out / 'heat.png'}, {out / 'curves.png'}")


def _batches(loader: "PairLoader", only: set[str]) -> Iterator[dict[str, Any]]:
    """Batches for ever, of these videos if there are any."""
    for epoch in itertools.count(1):
        loader.set_epoch(epoch)
        yield from _only(loader, lambda path: not only or path in only, videos=1)


def _only(loader: Any, wanted: Callable[[str], bool], videos: int = 2) -> Iterator[dict[str, Any]]:
    """Of each batch the pairs of wanted videos, if it has so many: to measure takes two, for a wrong f1."""
    for batch in loader:
        rows = [k for k, path in enumerate(batch["path"]) if wanted(path)]
        if len({batch["path"][k] for k in rows}) >= videos:
            yield {
                **{key: batch[key][rows] for key in ("video", "time", "seed")},
                "path": [batch["path"][k] for k in rows],
            }


def _teller(path: Path, steps: int) -> Callable[[int, float, float], None]:
    def tell(step: int, patch: float, pixel: float) -> None:
        if step in (1, steps) or step % 100 == 0:
            print(f"{path.stem}, heads, step {step}: NLL of patches {patch:.3f}, of pixels {pixel:.3f}", flush=True)

    return tell
