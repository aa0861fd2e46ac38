"""Programs that run beside each other, a few at a time: each writes what it says to a file of its own, a signal to us
stops them all, and none outlives the folder's lock."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from common.errors import InputError
from ml.checkpoints import lock
from ml.guards import StopSignals

_POLL = 0.05  # seconds


@dataclass(frozen=True)
class Job:
    """A program, and the file to which what it says is added."""

    command: Sequence[str]
    output: Path


class _Running(NamedTuple):
    which: int
    process: subprocess.Popen[bytes]
    since: float


def places(device: str | None, at_once: int) -> list[dict[str, str]]:
    """What the environment of each of the programs that run at once is to say: one GPU each, or nothing on a CPU.

    at_once: 0 for one on each GPU, or one alone.
    """
    if device not in (None, "cuda") or not torch.cuda.is_available():
        return [{}] * max(1, at_once)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(k) for k in range(torch.cuda.device_count())]
    return [{"CUDA_VISIBLE_DEVICES": names[k % len(names)]} for k in range(at_once or len(names))]


def run_jobs(
    jobs: Sequence[Job],
    environments: Sequence[Mapping[str, str]],
    stop: StopSignals,
    *,
    keep_open: int | None = None,
    enough: Callable[[], bool] = lambda: False,
) -> Generator[tuple[int, int, float], None, None]:
    """Run jobs, one at a time in each environment, and yield (which, exit code, seconds) as they end; `close` kills.

    When `stop` has received a signal no further job begins and the running ones get SIGTERM, so that they can save;
    they are yielded too. Nor does one begin once `enough` is true. keep_open: a file descriptor that the programs
    inherit.
    """
    waiting, running = list(range(len(jobs)))[::-1], dict[int, _Running]()
    asked = False
    try:
        while running or (waiting and not stop.received and not enough()):
            for slot, environment in enumerate(environments):
                if slot not in running and waiting and not stop.received and not enough():
                    k = waiting.pop()
                    running[slot] = _Running(k, start(jobs[k], environment, keep_open), time.monotonic())
            if stop.received and not asked:
                asked = True
                _tell(running, signal.SIGTERM)
            for slot, (k, process, since) in list(running.items()):
                code = process.poll()
                if code is not None:
                    del running[slot]
                    yield k, code, time.monotonic() - since
            time.sleep(_POLL)
    finally:
        _tell(running, signal.SIGKILL)
        for job in running.values():
            job.process.wait()


def start(job: Job, environment: Mapping[str, str], keep_open: int | None) -> subprocess.Popen[bytes]:
    job.output.parent.mkdir(parents=True, exist_ok=True)
    home = str(Path(__file__).parents[1])  # so that a program of ours finds our packages, installed or not
    path = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH")]))
    with open(job.output, "ab") as output:
        return subprocess.Popen(
            list(job.command), stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            env={**os.environ, "PYTHONPATH": path, **environment}, pass_fds=() if keep_open is None else (keep_open,),
        )  # fmt: skip


def _tell(running: Mapping[int, _Running], number: int) -> None:
    for job in running.values():
        job.process.send_signal(number)


def exit_reason(code: int, output: Path) -> str:
    """Why a program ended early, in a few words: its signal, or the last line that it said, no progress bar."""
    if code < 0:
        return f"ended by {signal.Signals(-code).name}"
    lines = [
        line.strip() for line in output.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").splitlines()
    ]
    said = [line for line in lines if line and "pair/s" not in line] or ["it said nothing"]
    return f"ended with code {code}: {said[-1][-300:]}"


@contextmanager
def alone(folder: Path, stop: StopSignals) -> Iterator[int | None]:
    """Hold a folder; where another process holds it, or one that it has left behind, wait until that has ended.

    Yields the descriptor that holds it, for the programs that we start: while one of them lives, the folder is held.
    """
    held = os.open(folder, os.O_RDONLY)
    told = False
    try:
        while not lock(held):
            if not told:
                print(f"{folder} is in use by another ablation, or by a run that a killed one has left: waiting")
            told = True
            if stop.received:
                raise InputError(f"stopped while waiting for the one that uses {folder}")
            time.sleep(10 * _POLL)
        yield held
    finally:
        os.close(held)
