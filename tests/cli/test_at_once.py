"""The command answers at once: help, wrong flags and what needs no model load no heavy library; Ctrl-C is quiet."""

import signal
import subprocess
import sys
import time
from pathlib import Path

from cli.main import COMMANDS

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "timm", "torchvision", "av", "cv2", "scipy", "matplotlib", "requests", "tensorboard", "IPython"}
# What is imported is counted, not timed: torch alone takes 4 s of CPU time, everything that help needs about 0.3 s.
CODE = f"""
import sys
from cli.main import COMMANDS, main
for name in COMMANDS:
    for flag, expected in (("--help", 0), ("--no-such-flag", 2)):
        try:
            main([*name.split(), flag])
        except SystemExit as end:
            assert end.code == expected, (name, flag, end.code)
        heavy = {HEAVY} & set(sys.modules)
        assert not heavy, f"{{name}} {{flag}} imported {{sorted(heavy)}}"
"""


def test_help_and_wrong_flags_load_nothing_heavy():
    """Of all commands in one program: what none has imported in the end, none imports."""
    result = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    assert all(f"siammae {name}" in result.stdout for name in COMMANDS)


def test_ctrl_c_during_the_imports_prints_no_traceback(tmp_path):
    """A module that takes long stands in for torch; the signal comes while it is being imported."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("import time; print('importing', flush=True); time.sleep(60)")
    heed = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "  # a job in the background does not
    )
    code = f"{heed}import sys; from cli.main import main; sys.exit(main(['plot', 'x', '--out', 'y.png']))"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env={"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert process.stdout and process.stdout.readline() == "importing\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130 and said == ""


def test_an_ascii_terminal_gets_escapes():
    environment = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PATH": ""}
    result = subprocess.run(
        [sys.executable, "-m", "cli.main", "--help"], capture_output=True, cwd=ROOT, env=environment, check=False
    )
    assert result.returncode == 0 and b"COMMAND \\u2026" in result.stdout, result.stderr
    assert all(name.encode() in result.stdout for name in COMMANDS)
