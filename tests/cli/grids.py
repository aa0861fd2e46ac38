"""`python tests/cli/grids.py`: runs `siammae ablate` in processes that can be killed, importing torch only once.

Reads one job a line from its input, as JSON: `line`, the words after `siammae`; `root`; `signal` and `after`: send it
to the whole process group, as a terminal does, once the logs of steps have so many lines together. Answers with one
line: the exit code and what was said. Runs of the grid are forked, not executed, so that none imports torch again.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]


class Ablations:
    """The other end: start it once, run many."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def run(self, line, root, **job):
        """The exit code, and what was said."""
        self.process.stdin.write(json.dumps(dict(line=[str(word) for word in line], root=str(root), **job)) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        return answer["code"], answer["said"]

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()


class Forked:
    """As much of a Popen as `run_jobs` asks for, of `python -m cli.main …` without a new interpreter."""

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


def _leave(line, output, mode):
    """Run a command with its words in a file, and end."""
    from cli.main import main

    with open(output, mode) as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    code = 1
    try:
        code = main(line)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def serve() -> None:
    import torch

    import cli.ablate
    import cli.train  # noqa: F401
    import ml.jobs

    torch.set_num_threads(1)
    ml.jobs.start = Forked
    for text in sys.stdin:
        job = json.loads(text)
        root = Path(job["root"])
        output = root.with_name(f"{root.name}_said.txt")
        child = os.fork()
        if not child:
            os.setsid()
            _leave(job["line"], output, "w")
        sent, deadline = "signal" not in job, time.monotonic() + 120
        while True:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                break
            if not sent and _steps(root) >= job["after"]:
                os.killpg(child, job["signal"])
                sent = True
            if time.monotonic() > deadline:
                os.killpg(child, signal.SIGKILL)
            time.sleep(0.002)
        print(json.dumps({"code": os.waitstatus_to_exitcode(status), "said": output.read_text()}), flush=True)


def _steps(root: Path) -> int:
    return sum(log.read_bytes().count(b"\n") for log in (root / "losses").glob("*.jsonl"))


if __name__ == "__main__":
    serve()
