"""What changes from step to step in a run, how it gets into a checkpoint, and how it comes back."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ml.checkpoints import FORMAT, LAST, save_checkpoint, save_last, writing_to
from ml.logs import mean_over_pairs
from ml.optimisation import Averaged, load_optimizer_state, optimizer_state
from ml.ranks import Ranks, whole
from ml.reporting import Listener, StepRecord
from ml.runs import Place
from ml.SiamMAE import Model

_SAVED = ("position", "step", "losses", "pairs", "skipped", "best", "random")


@dataclass
class Progress(Listener):
    """How far a run has come, and what it remembers of the epoch that it is in."""

    epoch: int = 0
    """the one that runs or has just ended, from 1"""
    position: int = 0
    """updates in this epoch; 0 once a checkpoint of its end was loaded"""
    step: int = 0
    """updates altogether"""
    losses: list[float] = field(default_factory=list)
    """of this epoch, without the steps that were skipped"""
    pairs: list[int] = field(default_factory=list)
    """in each of the same steps, over all ranks"""
    skipped: int = 0
    """steps of the whole run"""
    best: float = math.inf
    """lowest validation loss"""
    random: dict[str, Tensor] = field(default_factory=dict)
    """states of torch's generator: when the `epoch` began, and `now`"""
    resumed: bool = False
    """whether `random` has still to be put back"""

    @property
    def next_epoch(self) -> int:
        """The epoch to begin, or to go on with."""
        return self.epoch if self.position else self.epoch + 1

    @property
    def mean_loss(self) -> float:
        """Of this epoch, over its pairs."""
        return mean_over_pairs(self.losses, self.pairs)

    def begin(self, epoch: int) -> None:
        """Go to the first step of an epoch, unless a resume is in the middle of it."""
        if epoch != self.epoch:
            self.epoch, self.position, self.losses, self.pairs = epoch, 0, [], []

    def advance(self) -> None:
        """Count an update."""
        self.step += 1
        self.position += 1

    def on_step(self, record: StepRecord) -> None:
        if record.finite:
            self.losses.append(record.result.loss)
            self.pairs.append(record.pairs)
        else:
            self.skipped += 1


@dataclass
class State:
    """What a checkpoint holds, and where it goes. settings: what decides the numbers of the run."""

    model: Model
    optimizer: torch.optim.Optimizer
    averaged: Averaged
    progress: Progress
    settings: dict[str, Any]
    place: Place
    ranks: Ranks
    device: torch.device

    def restore(self) -> None:
        """Take over the checkpoint that the run resumes from, if any; its weights are the model's already."""
        checkpoint = self.place.checkpoint
        if checkpoint is None:
            return
        load_optimizer_state(self.model, self.optimizer, checkpoint["optimizer"])
        if checkpoint["averaged"] and self.averaged.decay:
            self.averaged.load(checkpoint["averaged"])
        elif self.averaged.decay and self.ranks.first:
            print("the run kept no averaged weights until now: the averages (ema) begin at its weights")
        for name in _SAVED:
            setattr(self.progress, name, checkpoint[name])
        self.progress.epoch = checkpoint["epoch"] + bool(checkpoint["position"])
        self.progress.resumed = True
        if self.device.type == "cpu" and checkpoint["threads"]:
            torch.set_num_threads(checkpoint["threads"])  # the order of sums depends on it

    def save(self, finished: int, *names: str) -> None:
        """Write the state, with so many epochs finished, to files of these names in the run's folder."""
        state = self._as_dict(finished)  # under FSDP every rank has a part of it
        self._write({name: state for name in names})

    def catch_up(self, name: str) -> None:
        """Write the file that a run still owes which was killed when its epoch had ended and `last.pt` was written."""
        if self.place.checkpoint and not self.progress.position and not (self.place.folder / name).exists():
            self._write({name: self.place.checkpoint})

    def _write(self, states: dict[str, dict[str, Any]]) -> None:
        with self.ranks.together():
            if self.ranks.first:
                with writing_to(self.place.folder):
                    for name, state in states.items():
                        if name == LAST:
                            save_last(self.place.folder, state)
                        else:
                            save_checkpoint(self.place.folder / name, state)

    def _as_dict(self, finished: int) -> dict[str, Any]:
        progress = self.progress
        progress.random["now"] = torch.get_rng_state()
        return dict(
            {name: getattr(progress, name) for name in _SAVED},
            format=FORMAT,
            model={name: whole(value) for name, value in self.model.state_dict().items()},
            optimizer=optimizer_state(self.model, self.optimizer),
            averaged=self.averaged.state(),
            epoch=finished,
            position=progress.position if finished < progress.epoch else 0,
            threads=torch.get_num_threads() if self.device.type == "cpu" else 0,
            run=self.place.run,
            rewound=(self.place.checkpoint or {}).get("rewound"),
            config=self.model.config,
            settings=self.settings,
            run_config=self.place.identity["run"],
        )
