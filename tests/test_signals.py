"""The tests hear Ctrl-C, and so do the processes that they start, however they are run."""

import subprocess
import sys

CODE = "import signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"


def test_a_process_of_ours_hears_ctrl_c():
    assert subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True).stdout == "True\n"


def test_also_where_a_script_runs_the_tests_in_the_background():
    """As `make test &` in a script does, which ignores SIGINT for them."""
    line = 'trap "" INT; exec "$0" -m pytest -q -p no:cacheprovider "$1::test_a_process_of_ours_hears_ctrl_c"'
    done = subprocess.run(["sh", "-c", line, sys.executable, __file__], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
