"""The tests hear Ctrl-C, and so do the processes that they start, however they are run: as `make test &` in a script
too, which ignores SIGINT for them."""

import signal
import subprocess
import sys

from tests.processes import hear_ctrl_c

CODE = "import signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"


def test_a_process_of_ours_hears_ctrl_c():
    assert subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True).stdout == "True\n"


def test_also_where_a_script_had_it_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        hear_ctrl_c()
        test_a_process_of_ours_hears_ctrl_c()
    finally:
        signal.signal(signal.SIGINT, before)
