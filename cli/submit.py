"""siammae submit [--nodes 2 --gpus-per-node 8 …] --data VIDEOS [everything that `siammae train` takes]"""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from cli import train as training
from cli.flags import flags
from common.errors import InputError

_SAVING = 120  # seconds that a run has for its last step and its state
_LATER = 60  # seconds after a run's end in which the news of a preemption may still come


@dataclass
class Arguments:
    """Hand a training run to Slurm through submitit; after a time limit or a preemption it goes on where it was."""

    cluster: Literal["slurm", "local", "debug"] = "slurm"
    """local: a process of its own on this machine; debug: in this process"""
    nodes: int = 1
    gpus_per_node: int = 1
    """one process each; 0: one process on the CPU"""
    cpus_per_task: int = 8
    """for each node: the loaders share them"""
    hours: float = 24.0
    """the time limit of each of the job's turns"""
    partition: str | None = None
    jobs: Path = Path("runs/slurm")
    """folder for what submitit writes: the job and what it says"""
    wait: bool = False
    """return when the job has ended"""
    train: Annotated[training.Arguments, tyro.conf.arg(name="")] = field(default_factory=lambda: training.defaults([]))


def arguments(argv: list[str]) -> Any:
    """The function to call, with training's defaults from the preset that the arguments name."""
    default = Arguments(train=training.defaults(argv))

    def main(arguments: Annotated[Arguments, tyro.conf.arg(name="")] = default) -> None:
        submit(arguments)

    main.__doc__ = Arguments.__doc__
    return main


def submit(chosen: Arguments) -> None:
    """Submit, and print the job's number and where it writes."""
    try:
        import submitit
    except ImportError:
        raise InputError(
            "submitit is not installed: pip install 'siammae[submitit]', or use docs/train.sbatch"
        ) from None
    if chosen.nodes < 1 or chosen.gpus_per_node < 0 or chosen.hours <= 0:
        raise InputError(
            f"{chosen.nodes} nodes, {chosen.gpus_per_node} GPUs, {chosen.hours} hours; expected at least one node, no "
            "negative number of GPUs, and some time"
        )
    if chosen.cluster != "slurm" and chosen.nodes > 1:
        raise InputError(f"{chosen.cluster} is this machine alone; expected --nodes 1")
    try:
        executor = submitit.AutoExecutor(chosen.jobs, cluster=chosen.cluster, slurm_max_num_timeout=1000)
    except RuntimeError as error:
        raise InputError(f"submitit cannot submit from here: {error}") from None
    more = {"slurm_partition": chosen.partition} if chosen.partition else {}
    executor.update_parameters(
        name="siammae", nodes=chosen.nodes, tasks_per_node=1, gpus_per_node=chosen.gpus_per_node,
        cpus_per_task=chosen.cpus_per_task, timeout_min=max(1, round(60 * chosen.hours)),
        slurm_signal_delay_s=_SAVING + 180, slurm_additional_parameters={"requeue": True}, **more,
    )  # fmt: skip
    job = executor.submit(Training(_words(chosen.train), max(1, chosen.gpus_per_node)))
    print(f"job {job.job_id}; what it says: {job.paths.stdout} and .err")
    if chosen.wait or chosen.cluster == "debug":
        job.result()


def _words(arguments: training.Arguments) -> list[str]:
    """The training line with every choice spelt out, so that it does not change when a preset does."""
    own = {f.name: getattr(arguments, f.name) for f in dataclasses.fields(arguments) if f.name != "config"}
    return flags({**own, **dataclasses.asdict(arguments.config)})


class Training:
    """`torchrun … -m cli.main train …` as a job of submitit's, one for each node; it stops when it must leave, with
    its state saved, and comes back as the same line, which goes on by itself."""

    def __init__(self, words: list[str], processes: int) -> None:
        self.words, self.processes = words, processes
        self._program: subprocess.Popen[bytes] | None = None

    def __call__(self) -> None:
        import submitit

        job = submitit.JobEnvironment()
        words = ["--nproc-per-node", str(self.processes)]
        if job.num_nodes > 1:
            port = 20000 + int(job.job_id.split("_")[0]) % 10000
            words += ["--nnodes", str(job.num_nodes), "--rdzv-backend", "c10d", "--rdzv-id", job.job_id]
            words += ["--rdzv-endpoint", f"{job.hostnames[0]}:{port}"]
        else:
            words += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0"]
        line = [sys.executable, "-m", "torch.distributed.run", *words, "-m", "cli.main", "train", *self.words]
        home = str(Path(__file__).parents[1])
        environment = {**os.environ, "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(_SAVING)}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH")]))
        # Slurm sends its warning to every process of the job: only submitit is to hear it, and tells torchrun then.
        hear = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGUSR2)}
        try:
            for number in hear:
                signal.signal(number, signal.SIG_IGN)
            self._program = subprocess.Popen(line, env=environment)
        finally:
            for number, handler in hear.items():
                signal.signal(number, handler)
        _wait_for(self._program)
        code = self._program.wait()
        if code:
            if "SLURM_JOB_ID" in os.environ:  # TERM has ended the run: a preemption's own signal is on its way
                time.sleep(_LATER)
            raise RuntimeError(f"training ended with code {code}; why is in what it said itself")

    def checkpoint(self) -> Any:
        """Called by submitit before the job goes back into the queue: the run saves its state and ends."""
        import submitit

        if self._program:
            with suppress(ProcessLookupError):
                os.kill(self._program.pid, signal.SIGTERM)
            _wait_for(self._program)
        return submitit.helpers.DelayedSubmission(Training(self.words, self.processes))


def _wait_for(program: "subprocess.Popen[bytes]") -> None:
    """Until it has ended. Popen's own wait holds a lock, which a signal handler that interrupts it would wait for."""
    with suppress(ChildProcessError):
        os.waitid(os.P_PID, program.pid, os.WEXITED | os.WNOWAIT)
