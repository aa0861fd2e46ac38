"""`python tests/processes.py`: trains in processes that can be killed, without importing torch for each of them.

Reads one job a line from its input, as JSON: `commands`, a list of argument lists for `siammae`, one for each process
of a run; `root`, where the run writes; `signal` and `after`: send it once the log of steps has so many lines; `delay`,
seconds to wait then; `to`, which processes get it (default all); `patience`: seconds after which those that outlive a
killed one are killed too, as torchrun does; `env`. Answers with one line: the exit codes.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]


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
        self.process.wait(60)
        self.process.stdout.close()


def serve() -> None:
    import torch

    import cli.train  # noqa: F401  # everything that a run needs, once
    import ml.plots  # noqa: F401
    from cli.main import main

    torch.set_num_threads(1)
    for line in sys.stdin:
        job = json.loads(line)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        outputs, children = [], []
        for rank, command in enumerate(job["commands"]):
            output = Path(job["root"]) / f"said_{rank}.txt"
            output.parent.mkdir(parents=True, exist_ok=True)
            outputs.append(output)
            child = os.fork()
            if not child:
                os.environ.update(job.get("env", {}))
                if len(job["commands"]) > 1:
                    os.environ.update(
                        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(len(job["commands"])),
                        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
                    )  # fmt: skip
                with open(output, "w") as said:
                    os.dup2(said.fileno(), 1)
                    os.dup2(said.fileno(), 2)
                code = 1
                try:
                    code = main(command)
                except SystemExit as end:
                    code = end.code if isinstance(end.code, int) else 1
                finally:
                    sys.stdout.flush()
                    sys.stderr.flush()
                    os._exit(code)
            children.append(child)
        codes = _watch(children, job)
        said = "".join(output.read_text() for output in outputs)
        print(json.dumps({"codes": codes, "said": said}), flush=True)


def _watch(children: list[int], job: dict) -> list[int]:
    """Send the signal when it is time, and wait for the ends."""
    codes: dict[int, int] = {}
    wanted, sent = job.get("signal"), False
    deadline = time.monotonic() + 120
    while len(codes) < len(children):
        for child in children:
            if child not in codes:
                done, status = os.waitpid(child, os.WNOHANG)
                if done:
                    codes[child] = os.waitstatus_to_exitcode(status)
        if wanted and not sent and _steps(Path(job["root"])) >= job["after"]:
            time.sleep(job.get("delay", 0))
            for rank in job.get("to", range(len(children))):
                if children[rank] not in codes:
                    os.kill(children[rank], wanted)
            sent = True
        if -signal.SIGKILL in codes.values():
            deadline = min(deadline, time.monotonic() + job.get("patience", 120))
        if time.monotonic() > deadline:
            for child in children:
                if child not in codes:
                    os.kill(child, signal.SIGKILL)
            deadline += 5
        time.sleep(0.002)
    return [codes[child] for child in children]


def _steps(root: Path) -> int:
    """Lines in the newest log of steps."""
    logs = sorted((root / "losses").glob("*.jsonl"))
    return logs[-1].read_bytes().count(b"\n") if logs else 0


if __name__ == "__main__":
    serve()
