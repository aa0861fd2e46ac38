"""A training line through submitit: in this process, and as a job that is preempted and comes back."""

import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from cli import submit, train
from cli.flags import flags
from cli.main import main
from ml.logs import read_steps
from ml.presets import preset

ROOT = Path(__file__).parents[2]
SMALL = ("--preset", "smoke", "--device", "cpu", "--image-size", "32", "--gpus-per-node", "0")


@pytest.fixture
def submitit(monkeypatch):
    module = pytest.importorskip("submitit", reason="submitit is an extra: pip install 'siammae[submitit]'")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return module


def line(clips, folder, *more):
    words = ["submit", "--data", clips, "--root", folder, "--jobs", folder / "jobs", *SMALL, *more]
    return [str(word) for word in words]


def steps(root):
    return [step["step"] for log in (root / "losses").glob("*.jsonl") for step in read_steps(log) if "loss" in step]


def test_the_line_says_everything(tmp_path, monkeypatch):
    """Read back by `siammae train`, it gives the same arguments, whatever preset the defaults came from."""
    given = train.defaults(["--preset", "demo"])
    given.data, given.prefix = tmp_path, "a b"
    given.config = given.config.replace(compile=True, rotation=2.5, decoder_kind="cross")
    seen = []
    monkeypatch.setattr(train, "run", seen.append)
    assert main(["train", *submit._words(given)]) == 0
    assert seen == [given] and given.config.epochs == preset("demo").config.epochs


def test_flags():
    settings = {"mask_ratio": 0.5, "compile": True, "checkpointing": False, "device": None, "few": (1, 2), "none": ()}
    assert flags(settings) == [
        "--mask-ratio", "0.5", "--compile", "--no-checkpointing", "--few", "1", "2"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--cluster", "local", "--nodes", "2"], "local is this machine alone"),
        (["--nodes", "0"], "expected at least one node"),
    ],
)
def test_mistakes_are_one_sentence(words, sentence, submitit, clips, tmp_path, capsys):
    assert main(line(clips, tmp_path, *words)) == 2
    assert sentence in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_without_submitit(clips, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert main(line(clips, tmp_path)) == 2
    assert "submitit is not installed: pip install 'siammae[submitit]'" in capsys.readouterr().err


def test_a_job_that_is_preempted_comes_back_and_ends(submitit, clips, tmp_path):
    """Slurm's signal, to every process of the job: the state is saved, the same line goes on, every step is once."""
    given = train.defaults(["--preset", "smoke"])
    given.data, given.root, given.device = clips, tmp_path, "cpu"
    given.config = given.config.replace(image_size=32, epochs=8, num_epochs_per_save=8)
    executor = submitit.AutoExecutor(tmp_path / "jobs", cluster="local", local_max_num_timeout=5)
    executor.update_parameters(timeout_min=10)
    job = executor.submit(submit.Training(submit._words(given), 1))
    deadline = time.monotonic() + 180
    while len(steps(tmp_path)) < 3:
        assert time.monotonic() < deadline and not job.done(), job.stderr()
        time.sleep(0.02)
    for process in psutil.Process(int(job.job_id)).children(recursive=True):  # without submitit's stand-in for Slurm
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGUSR2)
    job.result()
    said = job.stdout() + job.stderr()
    assert "SIGTERM: stopping after this step" in said and "going on with" in said and "Requeued job" in said
    assert steps(tmp_path) == list(range(1, 49))
