"""siammae settle SOURCE --data VIDEOS --out HEAD.pt: a small head on a frozen encoder"""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

if TYPE_CHECKING:
    from torch import Tensor

    from ml.extensions.settle import Settling


def main(
    source: Annotated[str, tyro.conf.Positional],
    data: Path,
    out: Path,
    steps: int = 1500,
    batch_size: int = 16,
    lr: float = 1e-3,
    temperature: float = 0.03,
    weight: float = 3.0,
    size: int | None = None,
    seed: int = 0,
    workers: int = 0,
    root: Path = Path(),
    device: str | None = None,
) -> None:
    """Train one linear map and a LayerNorm on the features of a frozen encoder, so that they agree through time.

    It takes minutes on a CPU. The result is the source settled:OUT of `eval` and `track`.

    Args:
        source: a run, <run>/<epoch>, a checkpoint, untrained:CHECKPOINT, random, mae:PATH, timm:NAME
        data: videos, in any form; none of those that are evaluated
        out: file for the head
        steps: updates
        batch_size: pairs in each
        lr: peak learning rate
        temperature: of the affinities
        weight: of the term that keeps the features near the encoder's
        size: side of the crops in pixels; default: the encoder's own
        seed: of pairs, crops and stretched positions
        workers: processes that decode
        root: folder that holds checkpoints/
        device: cuda, mps, cpu; default: the best there is
    """
    from cli.feature_sources import open_source
    from common.errors import InputError
    from dataset_loader import get_kinetics_dataset, make_loader
    from evaluation.features import Source
    from ml.devices import best_device
    from ml.extensions.settle import grid_of, save_head, settle

    if steps < 1 or batch_size < 1:
        raise InputError(f"steps {steps} and batch_size {batch_size} must be at least 1")
    if out.is_dir():
        raise InputError(f"{out} is a folder: give a file for the head, such as {out / 'head.pt'}")
    inner = open_source(source, root, str(best_device(device)), False)
    if not isinstance(inner, Source) or inner.model is None:
        raise InputError(
            f"{source} is no network: a head settles on a run, a checkpoint, random, mae:PATH or timm:NAME"
        )
    size = size or grid_of(inner.model)[0] * inner.patch_size
    dataset = get_kinetics_dataset(data, image_size=size, seed=seed)
    dataset.visits = max(1, -(-batch_size // len(dataset.paths)))
    loader = make_loader(dataset, batch_size, workers=workers)

    def pairs() -> Iterator["Tensor"]:
        for epoch in itertools.count(1):
            loader.set_epoch(epoch)
            yield from (batch["video"] for batch in loader)

    settings: dict[str, Any] = dict(steps=steps, lr=lr, temperature=temperature, weight=weight, seed=seed)
    settling = settle(inner.encode, inner.model, pairs(), told=_tell, **settings)
    settings |= dict(batch_size=batch_size, size=size)
    save_head(out, settling.head, source=source, weights=inner.weights, settings=settings)
    print(f"head: {out}; evaluate it with siammae eval davis --source settled:{out} …")


def _tell(step: int, settling: "Settling") -> None:
    if step % 100 == 0 or step == 1:
        cycle, kl, hits = (
            sum(values[-100:]) / len(values[-100:])
            for values in (settling.cycle, settling.divergence, settling.accuracy)
        )
        print(f"step {step}: cycle {cycle:.3f}, divergence {kl:.4f}, patches that come back {hits:.1%}", flush=True)
