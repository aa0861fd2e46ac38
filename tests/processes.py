"""`python tests/processes.py`: runs `siammae` in processes that can be killed, without importing torch for each.

Reads one job a line from its input, as JSON: `commands`, a list of argument lists for `siammae` (or `python` and a
file), one for each process of a run; `root`, where the run writes; `signal` and `after`: send it once the logs of steps
have so many lines together; `delay`, seconds to wait then; `to`, which processes get it (default all); `group`: their
children too, as from a terminal; `patience`: seconds after which those that outlive a killed one are killed too, as
torchrun does; `env`. Answers with one line: the exit codes, and what was said. What a command starts as programs of
ours (the runs of `siammae ablate`) is forked too.
"""

import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIMIT = 600  # seconds for a job: minutes on a busy machine


def hear_ctrl_c() -> None:
    """A script that runs us in the background has SIGINT ignored, which every process that we start inherits."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


class Trainer:
    """The other end: start it once, run many."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def run(self, *commands, root, **job):
        """Exit codes and what was said on the error stream."""
        job = dict(commands=[[str(word) for word in command] for command in commands], root=str(root), **job)
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        return answer["codes"], answer["said"]

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(LIMIT)
        self.process.stdout.close()


class Forked:
    """As much of a Popen as `ml.jobs` asks for, of `python -m cli.main …` without a new interpreter."""

    def __init__(self, job, environment, keep_open) -> None:
        assert list(job.command)[:3] == [sys.executable, "-m", "cli.main"]
        assert keep_open is not None and not environment
        self.code = None
        self.pid = os.fork()
        if not self.pid:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):  # as a new program has them
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
            job.output.parent.mkdir(parents=True, exist_ok=True)
            _leave(list(job.command)[3:], job.output, "a")

    def poll(self):
        if self.code is None:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if done else None
        return self.code

    def wait(self):
        while self.poll() is None:
            time.sleep(0.01)

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)


def _leave(command, output, mode="w"):
    """Run a command with its words in a file, and end this process."""
    from cli.main import main

    with open(output, mode) as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    code = 1
    try:
        if command[0] == "python":
            runpy.run_path(command[1], run_name="__main__")
            code = 0
        else:
            code = main(command)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


# What a run needs, and what libraries import only when they are first used (every optimiser torch._dynamo at its first
# step): imported once, and not in every fork.
NEEDED = (
    "torch._dynamo", "torch.distributed.fsdp", "torch.distributed.tensor", "torch.nn.parallel",
    "torchvision.transforms.v2", "av", "matplotlib.figure", "matplotlib.backends.backend_agg", "dataset_loader.loader",
    "ml.plots", "ml.ablation_figure", "cli.ablate",
)  # fmt: skip


def serve() -> None:
    import torch

    import cli.train
    import ml.jobs
    import ml.reporting
    import ml.training

    for name in NEEDED:
        importlib.import_module(name)
    torch.set_num_threads(1)
    ml.jobs.start = Forked
    # Figures, and the rehearsal before a run, take as long as the steps of these runs; other tests have them.
    ml.training.Figures = lambda *given: ml.reporting.Listener()
    cli.train.try_out = lambda config: None
    for line in sys.stdin:
        job = json.loads(line)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        root, ranks = Path(job["root"]), len(job["commands"])
        root.mkdir(parents=True, exist_ok=True)
        outputs, children = [root / f"said_{rank}.txt" for rank in range(ranks)], []
        for rank, (command, output) in enumerate(zip(job["commands"], outputs, strict=True)):
            child = os.fork()
            if not child:
                if job.get("group"):
                    os.setsid()
                os.environ.update(job.get("env", {}))
                if ranks > 1:
                    os.environ.update(
                        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks),
                        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
                    )  # fmt: skip
                _leave(command, output)
            children.append(child)
        codes = _watch(children, job, root)
        said = "".join(output.read_text() for output in outputs)
        print(json.dumps({"codes": codes, "said": said}), flush=True)


def _watch(children: list[int], job: dict, root: Path) -> list[int]:
    """Send the signal when it is time, and wait for the ends."""
    codes: dict[int, int] = {}
    wanted, sent = job.get("signal"), False
    send = os.killpg if job.get("group") else os.kill
    deadline = time.monotonic() + LIMIT
    while len(codes) < len(children):
        for child in children:
            if child not in codes:
                done, status = os.waitpid(child, os.WNOHANG)
                if done:
                    codes[child] = os.waitstatus_to_exitcode(status)
        if wanted and not sent and _steps(root) >= job["after"]:
            time.sleep(job.get("delay", 0))
            for rank in job.get("to", range(len(children))):
                if children[rank] not in codes:
                    send(children[rank], wanted)
            sent = True
        if -signal.SIGKILL in codes.values():
            deadline = min(deadline, time.monotonic() + job.get("patience", LIMIT))
        if time.monotonic() > deadline:
            for child in children:
                if child not in codes:
                    send(child, signal.SIGKILL)
            deadline += 5
        time.sleep(0.005)
    return [codes[child] for child in children]


def _steps(root: Path) -> int:
    """Lines in all logs of steps."""
    return sum(log.read_bytes().count(b"\n") for log in (root / "losses").glob("*.jsonl"))


if __name__ == "__main__":
    serve()
