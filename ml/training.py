"""The training loop: fetch, forward, backward, step, log; and once in a while evaluate, draw, save.

A run can be stopped at any moment and goes on exactly where it was: the learning rate is a function of the step, a
sample one of (seed, epoch, index), and everything else is in the checkpoint.

Legend: B samples in a batch, F frames of a sample.
"""

import sys
import time
import zlib
from collections.abc import Iterable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from tqdm import tqdm

from common.errors import InputError
from ml.checkpoints import only_here
from ml.devices import Device, best_device
from ml.engine import Run, Score
from ml.guards import PATIENCE, StopSignals
from ml.logs import StepLog
from ml.ranks import Ranks, Strategy
from ml.runs import begin_run
from ml.SiamMAE import Model
from ml.tracking import TrackerKind, make_tracker


def train(
    model: Model,
    data_loader: Any,
    epochs: int = 60,
    prefix: str = "",
    num_epochs_per_save: int = 10,
    device: Device = None,
    *,
    base_lr: float = 1.5e-4,
    warmup_epochs: float | None = None,
    weight_decay: float = 0.05,
    layer_decay: float = 1.0,
    clip_grad: float = 0.0,
    ema: float = 0.0,
    accumulation: int = 1,
    strategy: Strategy = "ddp",
    compile: bool = False,
    save_minutes: float = 15.0,
    skip_nonfinite: int = 0,
    validation: Iterable[dict[str, Any]] | None = None,
    score: Score | None = None,
    score_epochs: int = 10,
    resume: str | Path | None = None,
    allow_changes: bool = False,
    root: str | Path = ".",
    config: dict[str, Any] | None = None,
    tracker: TrackerKind = "none",
    progress: bool = True,
) -> str:
    """Train, and return the run's name, `<prefix><date>_<time>`.

    AdamW at base_lr × pairs in a step / 256, up in a straight line over `warmup_epochs` (default: a tenth of the
    epochs, 40 at most), then down along half a cosine. A step takes `accumulation` batches of the loader in each of the
    processes that `torchrun` started, which share gradients (`strategy` ddp) or all that is trained (fsdp).

    After each epoch a line goes to `losses/<run>.txt`, after each step one to `losses/<run>.jsonl`. The state goes to
    `checkpoints/<run>/last.pt` every `save_minutes`, after each epoch, and when Ctrl-C, SIGTERM or SIGUSR1 asks to
    stop; every `num_epochs_per_save` epochs, and at the end, `<epoch>.pt` and a figure of the first pair that was seen
    are kept as well. resume: a run to go on with, exactly as if it had never stopped; `auto`: the newest unfinished one
    of this prefix and configuration, if there is one; `once`: the same, but where such a run is finished none is begun.
    A checkpoint of a run, such as `<run>/<epoch>`: rewind it to that; what was later is kept in its folder, and the
    same again goes on. allow_changes: go on although the configuration differs.

    layer_decay, clip_grad (the gradients' largest norm), ema (averaged weights): off at 1, 0, 0. compile: by torch.
    skip_nonfinite: how many steps with a loss or gradient that is no number are left out before the run ends.
    validation: a loader of held-out pairs, evaluated after each epoch; the best epoch is kept as `best.pt`. score: is
    called with the model every `score_epochs` epochs and at the end, for numbers such as label propagation gives.
    root: the folder that holds `losses/` and `checkpoints/`. config: plain values that are kept with the weights, and
    compared on resuming. tracker: `tensorboard` or `wandb` reports there as well.
    """
    ranks, device, root = Ranks(), best_device(device), Path(root)
    if len(data_loader) < accumulation:
        raise InputError(
            f"the loader has {len(data_loader)} batches, and a step takes {accumulation}; are there fewer pairs than a "
            "step holds?"
        )
    futures = getattr(getattr(getattr(data_loader, "dataset", None), "temporal", None), "futures", 1)
    warmup = min(40, 0.1 * epochs) if warmup_epochs is None else warmup_epochs
    settings = dict(
        epochs=epochs, steps_per_epoch=len(data_loader) // accumulation,
        batch_size=data_loader.batch_size * futures * accumulation * ranks.world_size, base_lr=base_lr,
        warmup_epochs=warmup, weight_decay=weight_decay, layer_decay=layer_decay, clip_grad=clip_grad, ema=ema,
        compile=compile, data=_fingerprint(data_loader),
    )  # fmt: skip
    identity = dict(model=model.config, train=settings, run=config)
    with ExitStack() as stack:
        stack.enter_context(ranks.outliving_others())
        with ranks.together():
            place = begin_run(
                root, prefix, model, identity, resume, allow_changes, ranks,
                lambda path: stack.enter_context(only_here(path)),
            )  # fmt: skip
        run = Run(model.to(device), data_loader, settings, place, device, ranks, clip_grad, skip_nonfinite)
        run.prepare(strategy, accumulation, compile)
        kept = lambda epoch: epoch % num_epochs_per_save == 0 or epoch == epochs  # noqa: E731
        run.catch_up(kept)
        run.report = make_tracker(tracker if ranks.first else "none", place.run, identity, root, run.step)
        stack.callback(run.report.close)
        run.log = stack.enter_context(closing(StepLog(place.steps))) if ranks.first else None
        run.bar = stack.enter_context(_bar(run, progress and ranks.first))
        stop = stack.enter_context(StopSignals(patience=PATIENCE if ranks.world_size > 1 else None).watching())
        saved = time.monotonic()
        for epoch in range(run.epoch, epochs + 1):
            run.begin(epoch)
            for batches, waited in run.steps():
                run.step_with(batches, waited)
                due = time.monotonic() - saved > 60 * save_minutes
                signal, save_now = ranks.largest(stop.received, int(due))
                stop.answered()
                if save_now or signal:
                    run.save()
                    saved = time.monotonic()
                if signal:
                    _leave(signal, run)
            run.end_epoch()
            values = run.validate(validation) if validation is not None else {}
            if score and (epoch % score_epochs == 0 or epoch == epochs):
                values |= run.score(score)
            run.save(keep=kept(epoch), values=values)
            saved = time.monotonic()
        summary = run.summary()
    if progress and ranks.first:
        print(summary)
    return place.run


def _leave(signal: int, run: Run) -> None:
    """End as the signal asks, after the state was saved."""
    run.ranks.wait()
    run.bar.close()
    if run.ranks.first:
        print(
            f"\nstopped in epoch {run.epoch} of {run.settings['epochs']}, after step {run.step}; go on with the same "
            f"command, or resume={run.place.run!r}",
            file=sys.stderr,
        )
    if signal == 2:
        raise KeyboardInterrupt
    raise SystemExit(128 + signal)


def _bar(run: Run, shown: bool) -> tqdm:
    pairs = run.settings["batch_size"]
    return tqdm(
        total=run.settings["epochs"] * run.per_epoch * pairs, initial=run.step * pairs, unit="pair",
        desc=run.place.run, disable=not shown, mininterval=1, dynamic_ncols=True, smoothing=0.05,
    )  # fmt: skip


def _fingerprint(loader: Any) -> dict[str, Any]:
    """What a resume recognises the data by: how many videos, and a checksum over their names."""
    paths = getattr(getattr(loader, "dataset", None), "paths", None)
    if paths is None:
        return {}
    checksum = 0
    for path in paths:
        checksum = zlib.crc32(Path(path).name.encode(), checksum)
    return dict(videos=len(paths), names=f"{checksum:08x}")
