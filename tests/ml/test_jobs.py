"""Programs beside each other: their words and exit codes, signals, and a lock that outlives one that was killed."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing

import pytest
import torch

from common.errors import InputError
from ml.guards import StopSignals
from ml.jobs import Job, alone, exit_reason, places, run_jobs


def python(code, output):
    return Job([sys.executable, "-c", code], output)


def test_words_codes_and_places(tmp_path):
    """Three programs in two places; one of them dies of a signal, one says why it ends."""
    codes = [
        "import os, time; print('at', os.environ['PLACE'], flush=True); time.sleep(0.5)",
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        "import os, sys; import common.errors; print('no'); sys.exit('it is ' + os.environ['PLACE'])",
    ]
    jobs = [python(code, tmp_path / f"{k}.txt") for k, code in enumerate(codes)]
    ended = list(run_jobs(jobs, [{"PLACE": "a"}, {"PLACE": "b"}], StopSignals()))
    assert {which: code for which, code, _ in ended} == {0: 0, 1: -signal.SIGKILL, 2: 1} and ended[0][0] == 1
    assert (tmp_path / "0.txt").read_text() == "at a\n"
    assert exit_reason(-9, tmp_path / "1.txt") == "ended by SIGKILL"
    assert exit_reason(1, tmp_path / "2.txt") == "ended with code 1: it is b"  # not before the second had gone


def test_a_progress_bar_is_not_what_was_said_last(tmp_path):
    (tmp_path / "said").write_text("siammae train: no such thing\n run:  50%|##| 3/6 [00:00, 5 pair/s]\r run: 4 pair/s")
    assert exit_reason(2, tmp_path / "said") == "ended with code 2: siammae train: no such thing"
    (tmp_path / "said").write_text("")
    assert exit_reason(2, tmp_path / "said") == "ended with code 2: it said nothing"


def test_a_signal_stops_what_runs_and_begins_nothing_more(tmp_path):
    patient = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(7)); open({!r}, 'w'); time.sleep(60)"
    jobs = [python(patient.format(str(tmp_path / f"ready{k}")), tmp_path / f"{k}.txt") for k in range(3)]
    stop = StopSignals()

    def ask():
        while not all((tmp_path / f"ready{k}").exists() for k in range(2)):
            time.sleep(0.02)
        stop.received = signal.SIGUSR1

    threading.Thread(target=ask).start()
    assert sorted((which, code) for which, code, _ in run_jobs(jobs, [{}, {}], stop)) == [(0, 7), (1, 7)]
    assert not (tmp_path / "ready2").exists()


def test_none_is_left_when_the_one_who_waits_gives_up(tmp_path):
    jobs = [
        python("", tmp_path / "0"),
        python("import os, time; print(os.getpid(), flush=True); time.sleep(60)", tmp_path / "1"),
    ]
    with closing(run_jobs(jobs, [{}, {}], StopSignals())) as ended:
        assert next(ended)[:2] == (0, 0)
        while not (tmp_path / "1").read_text().endswith("\n"):
            time.sleep(0.02)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "1").read_text()), 0)


def test_a_folder_is_held_while_a_program_of_a_killed_one_lives(tmp_path, capsys):
    """Who comes next waits for it, and can be stopped while waiting."""
    stop = StopSignals()
    with alone(tmp_path, stop) as held:
        left = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], pass_fds=[held])
    threading.Timer(0.2, left.kill).start()
    start = time.monotonic()
    with alone(tmp_path, stop):
        assert 0.1 < time.monotonic() - start < 30 and "waiting" in capsys.readouterr().out
        left.wait()
        stop.received = signal.SIGTERM
        with pytest.raises(InputError, match="stopped while waiting"), alone(tmp_path, stop):
            pass


def test_one_place_for_each_gpu(monkeypatch):
    assert places("cpu", 0) == [{}] and places("cpu", 3) == [{}] * 3
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    key = "CUDA_VISIBLE_DEVICES"
    assert places(None, 0) == [{key: "0"}, {key: "1"}] and places("cuda", 3)[2] == {key: "0"}
    monkeypatch.setenv(key, "5,GPU-7f")
    assert places(None, 0) == [{key: "5"}, {key: "GPU-7f"}] and places(None, 1) == [{key: "5"}]
    assert places("cuda:1", 0) == [{}]
