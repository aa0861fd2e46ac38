"""docs/train.sbatch with `srun` and `scontrol` that only pretend: what is handed on and requeued, and a real run."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from ml.logs import read_steps

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "docs" / "train.sbatch"

SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do echo "$1" >> "$PRETEND/srun"; shift; done
echo $$ > "$PRETEND/step"
exec "$@"
"""
SCONTROL = """#!/bin/bash
case $1 in
    show) echo 127.0.0.1; echo another ;;
    *) echo "$@" >> "$PRETEND/scontrol" ;;
esac
"""
# Says what it was told and how it ends; what it does is in $DOES, and which signals it hears in $HEARS.
TORCHRUN = """#!/bin/bash
if [ "$1" = --help ]; then echo "$HELP"; exit 0; fi
printf '%s\\n' "$@" > "$PRETEND/torchrun"
for name in USR1 TERM; do trap "echo $name >> $PRETEND/heard; exit ${ENDS:-1}" $name; done
touch "$PRETEND/ready"
case $DOES in
    wait) while true; do sleep 0.02; done ;;
    *) exit "$DOES" ;;
esac
"""


@pytest.fixture
def job(tmp_path):
    """Start the script as Slurm would; (start, the folder where the pretenders write)."""
    folder, programs = tmp_path / "pretend", tmp_path / "bin"
    folder.mkdir()
    programs.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("torchrun", TORCHRUN)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    started = []

    def start(*words, real=False, **environment):
        if real:
            (programs / "torchrun").unlink(missing_ok=True)
        path = os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]])
        process = subprocess.Popen(
            ["bash", str(SCRIPT), *map(str, words)], cwd=ROOT, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env={
                **os.environ, "PATH": path,
                "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PRETEND": str(folder), "HELP": "--signals-to-handle",
                "SLURM_JOB_ID": str(40000 + os.getpid()), "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_NUM_NODES": "1",
                "SLURM_GPUS_ON_NODE": "2", "SLURM_CPUS_PER_TASK": "3", **environment,
            },
        )  # fmt: skip
        started.append(process)
        return process

    yield start, folder
    for process in started:
        with suppress(ProcessLookupError):  # Slurm, too, ends whatever a job has left
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def until(condition, process, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline or process.poll() is not None:
            raise AssertionError(
                f"in vain: {process.communicate(timeout=5) if process.poll() is not None else 'waiting'}"
            )
        time.sleep(0.02)


def lines(path):
    return path.read_text().splitlines() if path.exists() else []


def test_the_script_is_bash():
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)
    assert "\t" not in SCRIPT.read_text() and SCRIPT.read_text().startswith("#!/bin/bash\n")


@pytest.mark.parametrize("code", [0, 1, 2])
def test_an_end_of_its_own_is_not_requeued(code, job):
    start, folder = job
    process = start("--preset", "smoke", "--prefix", "a b", DOES=str(code))
    assert process.wait(60) == code and not (folder / "scontrol").exists()
    words = lines(folder / "torchrun")
    assert words[-4:] == ["--preset", "smoke", "--prefix", "a b"] and "--signals-to-handle" in words
    assert words[words.index("--nproc-per-node") + 1] == "2" and words[words.index("--nnodes") + 1] == "1"
    assert "127.0.0.1:" in words[words.index("--rdzv-endpoint") + 1]
    assert "--cpus-per-task=3" in lines(folder / "srun")


@pytest.mark.parametrize(("help_", "heard"), [("--signals-to-handle", "USR1"), ("an older one", "TERM")])
def test_usr1_is_handed_on_and_requeued(help_, heard, job):
    """As `--signal=B:USR1` sends it, to the script alone; an older torchrun hears TERM."""
    start, folder = job
    process = start(DOES="wait", HELP=help_)
    until((folder / "ready").exists, process)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(60) == 138 and lines(folder / "heard") == [heard]
    (said,) = lines(folder / "scontrol")
    assert said == f"requeue {40000 + os.getpid()}"


def test_a_run_that_ends_well_all_the_same_is_not_requeued(job):
    start, folder = job
    process = start(DOES="wait", ENDS="0")
    until((folder / "ready").exists, process)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(60) == 0 and lines(folder / "heard") == ["USR1"] and not (folder / "scontrol").exists()


@pytest.mark.parametrize("preempted", [True, False])
def test_term_to_the_step_waits_for_what_slurm_does(preempted, job):
    """USR1 follows: a preemption, and back into the queue. TERM follows, as after scancel: the end."""
    start, folder = job
    process = start(DOES="wait")
    until((folder / "ready").exists, process)
    os.kill(int((folder / "step").read_text()), signal.SIGTERM)
    until(lambda: lines(folder / "heard"), process)
    time.sleep(0.5)
    assert process.poll() is None and not (folder / "scontrol").exists()
    process.send_signal(signal.SIGUSR1 if preempted else signal.SIGTERM)
    assert process.wait(60) == (138 if preempted else -signal.SIGTERM)
    assert (folder / "scontrol").exists() == preempted


@pytest.mark.slow
def test_a_real_run_is_stopped_requeued_and_completed(job, clips, tmp_path):
    """Two processes of torchrun; USR1 to the script; the same script again goes on to the end, every step once."""
    start, folder = job
    words = ["--data", clips, "--root", tmp_path, "--device", "cpu", "--preset", "smoke", "--image-size", "32"]
    words += ["--epochs", "8", "--num-epochs-per-save", "8"]

    def steps():
        return [
            step["step"] for log in (tmp_path / "losses").glob("*.jsonl") for step in read_steps(log) if "loss" in step
        ]

    process = start(*words, real=True)
    until(lambda: len(steps()) >= 3, process)
    process.send_signal(signal.SIGUSR1)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 138 and "SIGUSR1: stopping after this step" in said, said[-2000:]
    assert len(lines(folder / "scontrol")) == 1 and 3 <= len(steps()) < 48
    process = start(*words, real=True)
    said = process.communicate(timeout=180)[0]
    assert process.returncode == 0 and "going on with slurm_" in said, said[-2000:]
    assert steps() == list(range(1, 49)) and len(lines(folder / "scontrol")) == 1
