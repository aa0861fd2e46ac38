"""The training loop: fetch, step, log; once in a while validate, score, save.

A run can be stopped at any moment and resumes exactly where it was: the learning rate is a function of the step, a
sample one of (seed, epoch, index), and everything else is in the checkpoint.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from common.errors import InputError
from mae.schedule import Schedule
from ml.checkpoints import BEST, LAST, only_here
from ml.devices import Device, best_device
from ml.guards import STOP_PATIENCE, Divergence, Nonfinite, StopSignals, leave
from ml.loading import Batch, Loader, batches_from, fingerprint, pairs_per_batch
from ml.logs import EpochLoss
from ml.optimisation import Averaged, lr_scale, make_optimizer, set_lr
from ml.ranks import Ranks, Strategy, compile_as_graphs, compile_blocks, wrap
from ml.reconstruction import masking
from ml.reporting import (
    Bar,
    EpochRecord,
    Figures,
    Listener,
    Logs,
    Reporter,
    StepRecord,
    TrackerKind,
    tracker_for,
)
from ml.runs import begin_run
from ml.SiamMAE import Model
from ml.state import Progress, State
from ml.step import training_step
from ml.validation import evaluate
from pages.surroundings import note_start

AGREE_EVERY = 10  # steps, and at the end of an epoch: then the ranks wait for each other to hear who was asked to stop

Score = Callable[[Model], dict[str, float]]


def train(
    model: Model,
    data_loader: Loader,
    epochs: int = 60,
    prefix: str = "",
    num_epochs_per_save: int = 10,
    device: Device = None,
    *,
    base_lr: float = 1.5e-4,
    peak_lr: float | None = None,
    warmup_epochs: float | None = None,
    weight_decay: float = 0.05,
    layer_decay: float = 1.0,
    clip_grad: float = 0.0,
    ema: float = 0.0,
    schedule: str = "",
    accumulation: int = 1,
    strategy: Strategy = "ddp",
    compile: bool = False,
    cuda_graphs: bool = False,
    save_minutes: float = 15.0,
    skip_nonfinite: int = 0,
    validation: Loader | None = None,
    score: Score | None = None,
    score_epochs: int = 10,
    resume: str | Path | None = None,
    allow_changes: bool = False,
    root: str | Path = ".",
    config: dict[str, Any] | None = None,
    tracker: TrackerKind = "none",
    figures: bool = True,
    progress: bool = True,
) -> str:
    """Train, and return the run's name, `<prefix><date>_<time>`.

    AdamW; the learning rate rises in a straight line over `warmup_epochs` (default: a tenth of the epochs, 40 at most)
    to `peak_lr` (default: base_lr × pairs in a step / 256), then falls along half a cosine. A step takes `accumulation`
    batches of the loader (see `ml.loading`) on each of the ranks that `torchrun` started, which share gradients
    (`strategy` ddp) or all that is trained (fsdp).

    After each epoch a line goes to `losses/<run>.txt`, after each step one to `losses/<run>.jsonl`. The state goes to
    `checkpoints/<run>/last.pt` every `save_minutes`, after each epoch, and when Ctrl-C, SIGTERM or SIGUSR1 asks to
    stop; every `num_epochs_per_save` epochs, and at the end, `<epoch>.pt` and a figure of the first sample that was
    seen are kept as well. resume: a run to go on with, exactly as if it had never stopped; `auto`: the newest
    unfinished one of this prefix and configuration, if there is one; `once`: the same, but where such a run is finished
    none is begun. A checkpoint of a run, such as `<run>/<epoch>`: rewind it to that; what was later is kept in its
    folder, and the same call again resumes. allow_changes: resume even if the configuration differs.

    layer_decay, clip_grad (the gradients' largest norm), ema (decay of averaged weights): off at 1, 0, 0. compile: by
    torch, block by block. cuda_graphs: as a whole, replayed as CUDA graphs; one process, accumulation 1. schedule: a
    curriculum (`mae.schedule`); its mask ratios are followed here, its pairings by the loader's data set.
    skip_nonfinite: how many steps with a NaN or infinite loss or gradient are skipped before the run ends.
    validation: a loader of held-out pairs, evaluated after each epoch; the best epoch is kept as `best.pt`. score: is
    called with the model every `score_epochs` epochs and at the end, for numbers such as label propagation gives. Both
    see the averaged weights where these are kept. root: the folder that holds `losses/` and `checkpoints/`. config:
    plain values that are kept with the weights, and compared on resuming. tracker: `tensorboard` or `wandb` hears of
    the run as well. figures, progress: off, nothing is drawn, and no bar is shown.
    """
    ranks, device = Ranks(), best_device(device)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # events and streams are those of the current one
    if cuda_graphs and (ranks.world_size, accumulation) != (1, 1):
        raise InputError(
            f"cuda_graphs is for one process and a step of one batch, here are {ranks.world_size} and {accumulation}: "
            "leave it out, or take all pairs of the step at once (pairs_per_device 0)"
        )
    plan = _plan(data_loader, model, epochs, accumulation, ranks, base_lr, peak_lr, warmup_epochs)
    settings = dict(
        epochs=epochs, steps_per_epoch=plan.per_epoch, batch_size=plan.pairs_per_step, peak_lr=plan.peak_lr,
        warmup_epochs=plan.warmup_epochs, weight_decay=weight_decay, layer_decay=layer_decay, clip_grad=clip_grad,
        ema=ema, compile=compile, data=fingerprint(data_loader), **({"schedule": schedule} if schedule else {}),
        **({"cuda_graphs": True} if cuda_graphs else {}),
    )  # fmt: skip
    identity = dict(model=model.config, train=settings, run=config)
    curriculum = Schedule.parse(schedule) if schedule else None
    with ExitStack() as stack:
        stack.enter_context(ranks.outliving_others())
        with ranks.together():
            hold = lambda folder: stack.enter_context(only_here(folder))  # noqa: E731
            place = begin_run(Path(root), prefix, model, identity, resume, allow_changes, ranks, hold)
            if ranks.first:
                note_start(place.folder)
        model.to(device)
        if cuda_graphs:
            compile_as_graphs(model)
        elif compile:
            compile_blocks(model)
        module = wrap(model, strategy, ranks, device)
        optimizer = make_optimizer(model, plan.peak_lr, weight_decay, layer_decay=layer_decay)
        state = State(model, optimizer, Averaged(model, ema), Progress(), settings, place, ranks, device)
        state.restore()
        done = state.progress
        kept = lambda epoch: epoch % num_epochs_per_save == 0 or epoch == epochs  # noqa: E731
        if done.epoch and kept(done.epoch):
            state.catch_up(f"{done.epoch}.pt")
        listeners = _listeners(state, plan, tracker=tracker, bar=progress, figures=figures, divided=strategy == "fsdp")
        report = Reporter([done, *listeners, Nonfinite(skip_nonfinite, done, place.folder, ranks)], device)
        stack.callback(report.close)
        together = ranks.world_size > 1
        stop = stack.enter_context(StopSignals(patience=STOP_PATIENCE if together else None).watching())
        saved = time.monotonic()

        for epoch in range(done.next_epoch, epochs + 1):
            done.begin(epoch)
            report.begin_epoch()
            module.train()
            for batches, waited in _steps(data_loader, done, accumulation):
                lr = plan.lr(done.step)
                set_lr(optimizer, lr)
                model.before_step(done.step, epochs * plan.per_epoch)
                ratio = curriculum.mask_ratio(done.step / plan.per_epoch) if curriculum else None
                with masking(model, ratio):
                    result = training_step(module, batches, optimizer, device=device, ranks=ranks, clip_grad=clip_grad)
                state.averaged.update()
                done.advance()
                pairs = result.pairs * ranks.world_size
                report.on_step(StepRecord(done.step, epoch, done.position, lr, pairs, waited, batches, result))
                if together and done.step % AGREE_EVERY and done.position < plan.per_epoch:
                    continue
                number, due = ranks.largest(stop.received, int(time.monotonic() - saved > 60 * save_minutes))
                stop.answered()
                if due or number:
                    report.flush()
                    state.save(epoch - 1, LAST)
                    saved = time.monotonic()
                if number:
                    _leave(number, f"stopped in epoch {epoch} of {epochs}, after step {done.step}", place.run, ranks)
            report.flush()
            scored = score if epoch % score_epochs == 0 or epoch == epochs else None
            record, names = _end_of_epoch(state, validation, scored, f"{epoch}.pt" if kept(epoch) else None)
            report.on_epoch(record)
            report.flush()
            state.save(epoch, *names)
            report.on_saved(record)
            saved = time.monotonic()
    if progress and ranks.first:
        loss = f"loss {done.mean_loss:.4f}" if done.losses else "nothing was left to do"
        skipped = f", {done.skipped} steps skipped" if done.skipped else ""
        print(f"{place.run}: {epochs} epochs, {done.step:,} steps, {loss}; {report}{skipped}")
    return place.run


@dataclass(frozen=True)
class _Plan:
    """How long a run is, and its learning rate."""

    epochs: int
    per_epoch: int
    """steps"""
    pairs_per_step: int
    """over all ranks"""
    peak_lr: float
    warmup_epochs: float

    def lr(self, step: int) -> float:
        """Of a step of the whole run, from 0."""
        return self.peak_lr * lr_scale(step, round(self.warmup_epochs * self.per_epoch), self.epochs * self.per_epoch)


def _plan(
    loader: Loader,
    model: Model,
    epochs: int,
    accumulation: int,
    ranks: Ranks,
    base_lr: float,
    peak_lr: float | None,
    warmup_epochs: float | None,
) -> _Plan:
    per_epoch = len(loader) // accumulation
    if not per_epoch:
        raise InputError(
            f"the loader has {len(loader)} batches, and a step takes {accumulation}; are there fewer pairs than a "
            "step holds?"
        )
    pairs_per_step = pairs_per_batch(loader, model) * accumulation * ranks.world_size
    peak_lr = base_lr * pairs_per_step / 256 if peak_lr is None else peak_lr
    warmup_epochs = min(40, 0.1 * epochs) if warmup_epochs is None else warmup_epochs
    return _Plan(epochs, per_epoch, pairs_per_step, peak_lr, warmup_epochs)


def _listeners(
    state: State, plan: _Plan, *, tracker: TrackerKind, bar: bool, figures: bool, divided: bool
) -> list[Listener]:
    """Who hears of the run on its first rank. divided: the model is spread over the ranks, if there are several."""
    if not state.ranks.first:
        return []
    place, step = state.place, state.progress.step
    trackers = tracker_for(tracker, place, step)
    listeners: list[Listener] = [Logs(place), Divergence()]
    if bar:
        listeners.append(Bar(place.run, plan.epochs, plan.epochs * plan.per_epoch, step, plan.pairs_per_step))
    if figures:
        model = None if divided and state.ranks.world_size > 1 else state.model
        listeners.append(Figures(place, model, state.averaged, state.device))
    return listeners + trackers


def _steps(loader: Loader, done: Progress, accumulation: int) -> Iterator[tuple[list[Batch], float]]:
    """The batches of each step that is left of an epoch, and the seconds that they were waited for.

    After a resume torch's generator repeats what it did from the beginning of the epoch: an order that a loader drew
    from it comes again.
    """
    if done.resumed:
        torch.set_rng_state(done.random["epoch" if done.position else "now"])
    done.random["epoch"] = torch.get_rng_state()
    batches = batches_from(loader, done.epoch, done.position * accumulation)
    if done.resumed:
        torch.set_rng_state(done.random["now"])
        done.resumed = False
    per_epoch = len(loader) // accumulation
    for _ in range(done.position, per_epoch):
        start = time.monotonic()
        group = list(islice(batches, accumulation))
        if len(group) < accumulation:
            raise InputError(f"the loader ended after {done.position} steps of epoch {done.epoch}, too early")
        yield group, time.monotonic() - start
    for _ in islice(batches, len(loader) - per_epoch * accumulation + 1):
        pass  # batches that do not fill a step, and the end, where a loader may say that most files were bad


def _end_of_epoch(
    state: State, validation: Loader | None, score: Score | None, keep: str | None
) -> tuple[EpochRecord, list[str]]:
    """What the epoch came to, and the names of the checkpoints to write; keep: the one that is never overwritten."""
    done = state.progress
    if not done.losses:
        raise InputError(f"epoch {done.epoch} had no step whose loss is finite")
    record = EpochRecord(done.step, done.epoch, EpochLoss(done.epoch, done.mean_loss, done.losses))
    names = [LAST]
    if validation is not None:
        record.validation = _validate(validation, state)
        record.values["validation_loss"] = record.validation.mean
        if state.ranks.agree(record.validation.mean < done.best):
            done.best = record.validation.mean
            names.insert(0, BEST)  # before `last.pt` says that it was reached
    if score:
        state.model.eval()
        with state.averaged.in_place():
            scores = state.ranks.agree(score(state.model))
        record.values |= {name: float(value) for name, value in scores.items()}
    if keep:
        record.checkpoint = state.place.folder / keep
        names.append(keep)  # last: that of the last epoch says that the run is finished
    return record, names


def _validate(loader: Loader, state: State) -> EpochLoss:
    if hasattr(loader, "set_epoch"):
        loader.set_epoch(0)
    shared = getattr(loader, "world_size", 1) > 1
    with state.averaged.in_place():
        loss = evaluate(state.model, loader, state.device, ranks=state.ranks if shared else None)
    return replace(loss, epoch=state.progress.epoch)


def _leave(number: int, where: str, run: str, ranks: Ranks) -> None:
    """End as the signal asks, after the state was saved."""
    ranks.wait()
    if ranks.first:
        tqdm.write(f"\n{where}; go on with the same command, or resume={run!r}", file=sys.stderr)
    leave(number)
