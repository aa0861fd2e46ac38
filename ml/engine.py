"""A run in the middle of its work: the state that changes from step to step, one step, and what is kept of it.

Legend: B samples in a batch, F frames of a sample.
"""

import inspect
import math
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from common.errors import InputError
from ml.checkpoints import BEST, save_checkpoint, save_last, writing_to
from ml.devices import precision
from ml.guards import Divergence
from ml.logs import EpochLoss, StepLog, append_line, mean_over_pairs, read_losses
from ml.optimisation import (
    Averaged,
    clip_gradients,
    load_optimizer_state,
    lr_scale,
    make_optimizer,
    optimizer_state,
    set_lr,
    update,
)
from ml.ranks import Ranks, Strategy, sharing, whole, wrap
from ml.runs import Place
from ml.SiamMAE import Model
from ml.tracking import NoTracker, Tracker
from ml.validation import evaluate, mask_seeds

Score = Callable[[Any], dict[str, float]]


@dataclass
class Run:
    """A run in the middle of its work: all that changes from step to step, and what is done with it."""

    model: Model
    loader: Any
    settings: dict[str, Any]
    place: Place
    device: torch.device
    ranks: Ranks
    clip_grad: float
    skip_nonfinite: int
    epoch: int = 1
    position: int = 0  # updates in this epoch
    step: int = 0  # updates altogether
    losses: list[float] = field(default_factory=list)  # of this epoch
    pairs: list[int] = field(default_factory=list)
    skipped: int = 0
    best: float = math.inf
    sample: dict[str, Any] = field(default_factory=dict)
    log: StepLog | None = None
    report: Tracker = field(default_factory=NoTracker)
    bar: tqdm = field(default_factory=lambda: tqdm(disable=True))

    def prepare(self, strategy: Strategy, accumulation: int, compile: bool) -> None:
        """The optimiser, the module to call, and the state of a checkpoint that is to be gone on with."""
        checkpoint = self.place.checkpoint  # its weights are the model's already
        if compile:
            self.model.compile()
        self.module = wrap(self.model, strategy, self.ranks, self.device)
        self.accumulation = accumulation
        self.peak = self.settings["base_lr"] * self.settings["batch_size"] / 256
        self.per_epoch: int = self.settings["steps_per_epoch"]
        self.warmup_steps = round(self.settings["warmup_epochs"] * self.per_epoch)
        self.optimizer = make_optimizer(
            self.model, self.peak, self.settings["weight_decay"], layer_decay=self.settings["layer_decay"]
        )
        self.averaged = Averaged(self.model, self.settings["ema"])
        self.divergence = Divergence()
        self.waiting: list[tuple[dict[str, Any], Tensor, Any]] = []  # steps whose numbers are still on their way
        self.random = {"epoch": torch.get_rng_state(), "now": torch.get_rng_state()}
        self.resumed = bool(checkpoint)
        self.clock = self.started = time.monotonic()
        self.waited = 0.0
        self.first_step = 0
        if checkpoint:
            load_optimizer_state(self.model, self.optimizer, checkpoint["optimizer"])
            if checkpoint["averaged"] and self.settings["ema"]:
                self.averaged.load(checkpoint["averaged"])
            elif self.settings["ema"] and self.ranks.first:
                print("the run kept no averaged weights until now: the averages (ema) begin at its weights")
            for name in ("step", "position", "losses", "pairs", "skipped", "best", "random"):
                setattr(self, name, checkpoint[name])
            self.epoch = checkpoint["epoch"] + 1
            self.first_step = self.step
            if self.device.type == "cpu" and checkpoint["threads"]:
                torch.set_num_threads(checkpoint["threads"])  # the order of sums depends on it

    def catch_up(self, kept: Callable[[int], bool]) -> None:
        """Keep the epoch that a resumed run has just ended, if it was killed after `last.pt` and before that file."""
        done, checkpoint = self.epoch - 1, self.place.checkpoint
        path = self.place.folder / f"{done}.pt"
        with self.ranks.together():
            if self.ranks.first and checkpoint and done and not self.position and kept(done) and not path.exists():
                with writing_to(self.place.folder):
                    save_checkpoint(path, checkpoint)

    def begin(self, epoch: int) -> None:
        """Go to the epoch's first step, or to where a resumed run was in it."""
        if not (self.resumed and self.position):
            self.position, self.losses, self.pairs = 0, [], []
        self.epoch, self.clock = epoch, time.monotonic()

    def steps(self) -> Iterator[tuple[list[dict[str, Any]], float]]:
        """The batches of each step that is left of this epoch, and the seconds that they were waited for."""
        batches = self._batches()
        for _ in range(self.position, self.per_epoch):
            start = time.monotonic()
            group = list(islice(batches, self.accumulation))
            if len(group) < self.accumulation:
                raise InputError(f"the loader ended after {self.position} steps of epoch {self.epoch}, too early")
            yield group, time.monotonic() - start
        if self.per_epoch * self.accumulation == len(self.loader):
            next(batches, None)  # the loader's own last words, such as that most files were bad

    def _batches(self) -> Iterator[dict[str, Any]]:
        """The loader's batches from `position` on; one that cannot skip is read from the epoch's beginning."""
        skip = self.position * self.accumulation
        if self.resumed:
            torch.set_rng_state(self.random["epoch" if skip else "now"])
        self.random["epoch"] = torch.get_rng_state()
        set_epoch = getattr(self.loader, "set_epoch", None)
        if set_epoch and skip and len(inspect.signature(set_epoch).parameters) > 1:
            set_epoch(self.epoch, skip)
            skip = 0
        elif set_epoch:
            set_epoch(self.epoch)
        batches = iter(self.loader)
        for _ in range(skip):
            next(batches)
        if self.resumed:
            torch.set_rng_state(self.random["now"])
        self.resumed = False
        return batches

    def step_with(self, batches: Sequence[dict[str, Any]], waited: float) -> None:
        """One update with the gradients of all batches, and what is to be told of it."""
        self.module.train()
        lr = self.peak * lr_scale(self.step, self.warmup_steps, self.settings["epochs"] * self.per_epoch)
        set_lr(self.optimizer, lr)
        self.optimizer.zero_grad(set_to_none=True)
        samples = sum(len(batch["video"]) for batch in batches)
        total, pairs = torch.zeros((), device=self.device), 0
        for k, batch in enumerate(batches):
            video = batch["video"].to(self.device, non_blocking=True)
            with precision(self.device), sharing(self.module, k == len(batches) - 1):
                loss, _, mask = self.module(video, seeds=mask_seeds(batch, self.device))
            with sharing(self.module, k == len(batches) - 1):
                share = loss * (len(video) / samples) if len(batches) > 1 else loss
                share.backward()
            total += share.detach()
            pairs += len(mask)
        norm = clip_gradients(self.model, self.clip_grad)
        mean = self.ranks.mean(total.clone())
        update(self.optimizer, norm + 0 * mean)  # no number where either is none, so that all processes leave it out
        self.averaged.update()
        self.step += 1
        self.position += 1
        if not self.sample:
            first = batches[0]
            self.sample = {key: first[key][0] for key in ("video", "time", "seed") if key in first}
        about = dict(
            step=self.step, epoch=self.epoch, position=self.position, lr=lr, pairs=pairs * self.ranks.world_size,
            waited=waited, paths=[path for batch in batches for path in batch.get("path", [])],
        )  # fmt: skip
        numbers = torch.stack([mean, norm.to(total), total])
        self._expect(about, numbers)
        self._read(keep=0 if self.device.type == "cpu" else 1)

    def _expect(self, about: dict[str, Any], numbers: Tensor) -> None:
        """Send loss and norm to the host, without waiting for them on a GPU."""
        event = None
        if self.device.type == "cuda":
            numbers = torch.empty(numbers.shape, pin_memory=True).copy_(numbers, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self.waiting.append((about, numbers, event))

    def _read(self, keep: int = 0) -> None:
        """Log the steps whose numbers have come; all but the last `keep` are waited for."""
        while len(self.waiting) > keep:
            about, numbers, event = self.waiting.pop(0)
            if event:
                event.synchronize()
            self._tell(about, *numbers.tolist())

    def _tell(self, about: dict[str, Any], loss: float, norm: float, own: float) -> None:
        now, pairs = time.monotonic(), about["pairs"]
        seconds, self.clock = now - self.clock, now
        self.waited += about["waited"]
        values: dict[str, Any] = dict(
            loss=loss, lr=about["lr"], grad_norm=norm, pairs_per_second=round(pairs / max(seconds, 1e-9), 2),
            waiting=round(min(1.0, about["waited"] / max(seconds, 1e-9)), 4), memory_mib=_memory(self.device),
        )  # fmt: skip
        finite = math.isfinite(loss) and math.isfinite(norm)
        if finite:
            self.losses.append(loss)
            self.pairs.append(pairs)
            self.divergence.look(about["step"], loss)
        else:
            self.skipped += 1
            values["skipped"] = True
        if self.log:
            self.log.write(step=about["step"], epoch=about["epoch"], **values)
            self.report.log(about["step"], values)
            self.bar.update(pairs)
            share = self.waited / max(1e-9, now - self.started)
            self.bar.set_postfix(
                epoch=f"{about['epoch']}/{self.settings['epochs']}", loss=f"{loss:.4f}", waiting=f"{share:.0%}",
                refresh=False,
            )  # fmt: skip
        if not finite:
            self._not_finite(about, loss, norm, own)

    def _not_finite(self, about: dict[str, Any], loss: float, norm: float, own: float) -> None:
        """Leave a step out, or end the run: the weights are as they were before it."""
        shares = self.ranks.gather((math.isfinite(own), about["paths"]))
        guilty = [path for fine, paths in shares if not fine for path in paths]
        paths = list(dict.fromkeys(guilty or [path for _, paths in shares for path in paths]))
        what = f"loss is {loss}" if not math.isfinite(loss) else f"gradient's norm is {norm}"
        files = f", with {', '.join(paths)} in the batch" if paths else ""
        where = f"at step {about['position']} of epoch {about['epoch']} (learning rate {about['lr']:.3g})"
        if self.skipped <= self.skip_nonfinite:
            if self.ranks.first:
                print(
                    f"\nthe {what} {where}{files}: left out, {self.skipped} of {self.skip_nonfinite}", file=sys.stderr
                )
            return
        raise InputError(
            f"the {what} {where}{files}; the earlier checkpoints are kept in {self.place.folder}: lower base_lr, "
            "lengthen the warm-up, clip the gradients (clip_grad) or leave such steps out (skip_nonfinite), and resume"
        )

    def end_epoch(self) -> None:
        """Everything told, the epoch's line written."""
        self._read()
        if not self.losses:
            raise InputError(f"epoch {self.epoch} had no step whose loss is a number")
        if self.ranks.first:
            line = EpochLoss(self.epoch, mean_over_pairs(self.losses, self.pairs), self.losses)
            append_line(self.place.losses, line)

    def validate(self, loader: Iterable[dict[str, Any]]) -> dict[str, float]:
        """The loss on held-out pairs, into its own log; the best one's weights are kept."""
        if hasattr(loader, "set_epoch"):
            loader.set_epoch(0)
        shared = getattr(getattr(loader, "sampler", None), "world_size", 1) > 1
        with self.averaged.in_place():
            result = evaluate(self.model, loader, self.device, ranks=self.ranks if shared else None)
        if self.ranks.first:
            append_line(self.place.test_losses, EpochLoss(self.epoch, result.mean, result.losses))
        if self.ranks.agree(result.mean < self.best):
            self.best = result.mean
            self._write(self.epoch, self.place.folder / BEST)
        return {"validation_loss": result.mean}

    def score(self, function: Score) -> dict[str, float]:
        """What a function that was handed in says of the model as it is now."""
        self.model.eval()
        with self.averaged.in_place():
            values = self.ranks.agree(function(self.model))
        self.model.train()
        return {name: float(value) for name, value in values.items()}

    def save(self, *, keep: bool | None = None, values: dict[str, float] | None = None) -> None:
        """`last.pt`; at the end of an epoch (keep is not None) its numbers, and perhaps its own file and figures."""
        self._read()
        ended = keep is not None
        if self.log:
            if ended:
                loss = mean_over_pairs(self.losses, self.pairs)
                told = {"epoch_loss": loss, **(values or {})}
                self.log.write(step=self.step, epoch=self.epoch, **told)
                if values:
                    numbers = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
                    self.bar.write(f"epoch {self.epoch}: loss {loss:.4f}, {numbers}")
            self.log.flush()
        done = self.epoch if ended else self.epoch - 1
        checkpoint = self.place.folder / f"{self.epoch}.pt" if keep else None
        self._write(done, checkpoint, last=True)
        if self.log and ended:
            files = self._draw() if keep else {}
            self.report.log(self.step, {"epoch": float(self.epoch), **told}, files, checkpoint)

    def _write(self, done: int, path: Path | None, *, last: bool = False) -> None:
        """The state after `done` whole epochs: as the last one, then into a file of its own, or one of the two."""
        state = self._state(done)  # every process has a part of it where it is divided
        with self.ranks.together():
            if self.ranks.first:
                with writing_to(self.place.folder):
                    if last:
                        save_last(self.place.folder, state)
                    if path:  # comes second: that of the last epoch says that the run is finished
                        save_checkpoint(path, state)

    def _state(self, done: int) -> dict[str, Any]:
        """All that a resume needs, after `done` whole epochs."""
        return dict(
            format=2,
            model={name: whole(value) for name, value in self.model.state_dict().items()},
            optimizer=optimizer_state(self.model, self.optimizer),
            averaged=self.averaged.state(),
            epoch=done,
            step=self.step,
            position=self.position if done < self.epoch else 0,
            losses=self.losses,
            pairs=self.pairs,
            skipped=self.skipped,
            best=self.best,
            random={"epoch": self.random["epoch"], "now": torch.get_rng_state()},
            threads=torch.get_num_threads() if self.device.type == "cpu" else 0,
            run=self.place.run,
            rewound=(self.place.checkpoint or {}).get("rewound"),
            config=self.model.config,
            settings=self.settings,
            run_config=self.place.identity["run"],
        )

    def _draw(self) -> dict[str, Path]:
        """A pair as the model sees it now, and the loss so far: into files, and into a running notebook."""
        from ml.figures import loss_figure, save_figure, show
        from ml.utils import plot_sample

        log = self.place.losses
        curve = save_figure(loss_figure({log.stem: read_losses(log)}), log.with_suffix(".png"))
        if self.ranks.world_size > 1 and self.module is self.model:
            return {"losses": curve}  # a divided model is not drawn by one process alone
        figure = plot_sample(self.sample, self.model, self.device)
        show(figure)
        return {"reconstruction": save_figure(figure, self.place.folder / f"{self.epoch}.png"), "losses": curve}

    def summary(self) -> str:
        """What has been, in one line."""
        seconds = max(1e-9, time.monotonic() - self.started)
        steps = self.step - self.first_step
        speed = steps * self.settings["batch_size"] / seconds
        left_out = f", {self.skipped} steps left out" if self.skipped else ""
        loss = f"loss {mean_over_pairs(self.losses, self.pairs):.4f}" if self.losses else "nothing was left to do"
        return (
            f"{self.place.run}: {self.settings['epochs']} epochs, {self.step:,} steps, {loss}; {steps:,} steps here in "
            f"{seconds / 60:.1f} min, {speed:.1f} pairs/s, {self.waited / seconds:.0%} waiting for data{left_out}"
        )


def _memory(device: torch.device) -> int:
    """Peak memory so far in MiB: of the GPU, else of this process."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10))
