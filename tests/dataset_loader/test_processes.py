"""Processes that hang, die or grow are replaced, and none outlives who started it."""

import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common.errors import InputError
from dataset_loader.processes import Failure, supervise


def test_results_come_whatever_else_happens():
    assert dict(supervise(abs, [-1, -2, -3], jobs=2)) == {-1: 1, -2: 2, -3: 3}
    assert list(supervise(abs, [], jobs=2)) == []
    assert dict(supervise(print, [""], jobs=1)) == {"": None}
    with pytest.raises(InputError, match="jobs is 0"):
        list(supervise(abs, [1], jobs=0))


def test_a_process_that_hangs_is_ended_and_the_rest_goes_on():
    begin = time.monotonic()
    results = dict(supervise(time.sleep, [0.01, 1000, 0.02, 0.03], jobs=1, silence=1.0))
    assert results[1000] == Failure("hung", "gave nothing for 1 s") and time.monotonic() - begin < 30
    assert [results[k] for k in (0.01, 0.02, 0.03)] == [None] * 3


def test_a_process_that_dies_is_replaced():
    results = dict(supervise(signal.raise_signal, [signal.SIGKILL, 0, signal.SIGSEGV], jobs=2))
    assert results.keys() == {signal.SIGKILL, 0, signal.SIGSEGV}
    assert results[signal.SIGKILL] == Failure("crashed", "crashes the decoder (its process was ended by SIGKILL)")
    assert "SIGSEGV" in results[signal.SIGSEGV].reason
    assert dict(supervise(os._exit, [3], jobs=1))[3].reason.endswith("(its process ended with code 3)")
    assert dict(supervise(ctypes.string_at, [0], jobs=1))[0].kind == "crashed"


def test_a_process_gets_so_much_memory_and_no_more():
    results = dict(supervise(bytearray, [1 << 20, 1 << 30], jobs=1, memory=1 << 28))
    assert results[1 << 30].reason == "needs more than 0.2 GiB of memory" and len(results[1 << 20]) == 1 << 20


def test_no_process_outlives_a_supervisor_that_stops_early():
    results = supervise(time.sleep, [0, 100, 100], jobs=3)
    next(results)
    results.close()
    assert multiprocessing.active_children() == []


def test_no_process_outlives_a_supervisor_that_is_killed(tmp_path):
    """It would go on writing into what the next run believes to be its own."""
    note = tmp_path / "pid"
    task = f"import os, time; open({str(note)!r}, 'w').write(str(os.getpid()) + '.'); time.sleep(1000)"
    code = f"from dataset_loader.processes import supervise; list(supervise(exec, [{task!r}], jobs=1))"
    supervisor = subprocess.Popen([sys.executable, "-c", code])
    try:
        while not (note.exists() and note.read_text().endswith(".")):
            assert supervisor.poll() is None
            time.sleep(0.02)
    finally:
        supervisor.kill()
        supervisor.wait()
    pid, end = int(note.read_text()[:-1]), time.monotonic() + 10
    while is_running(pid):
        assert time.monotonic() < end
        time.sleep(0.02)


def test_ctrl_c_while_processes_start_is_for_one_to_report():
    """It goes to the whole group, also to the process that imports what the others are forked with."""
    code = "import time; from dataset_loader.processes import forking_context; forking_context(); print(flush=True)\n"
    code += "try: time.sleep(60)\nexcept KeyboardInterrupt: print('stopped')"
    # Python leaves SIGINT ignored where the parent ignores it, as a shell's background jobs do.
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n" + code
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, **pipes)
    try:
        process.stdout.readline()
        time.sleep(0.2)  # until it imports
        os.killpg(process.pid, signal.SIGINT)
        assert process.communicate(timeout=60) == ("stopped\n", "")
    finally:
        process.kill()
        process.wait()


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_a_temporary_folder_with_a_long_name(tmp_path):
    """The name of a socket has 107 bytes at most."""
    folder = tmp_path / ("x" * 110)
    folder.mkdir()
    code = "from dataset_loader.processes import supervise; print(sorted(supervise(abs, [-1, -2], jobs=2)))"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "TMPDIR": str(folder)}
    )
    assert run.stdout == "[(-2, 2), (-1, 1)]\n" and not run.stderr and run.returncode == 0
    assert list(folder.iterdir()) == []
