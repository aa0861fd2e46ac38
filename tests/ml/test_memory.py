"""Freed memory is kept: a second step asks the system for next to nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import resource, torch
from ml.devices import keep_freed_memory
torch.set_num_threads(1)
def step():
    for _ in range(3):
        tensors = [torch.ones(2_000_000) for _ in range(10)]
        del tensors
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
before = faults()
assert keep_freed_memory()
faults()
print(before, faults())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems have no mallopt")
def test_a_second_step_takes_the_memory_of_the_first():
    run = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    before, after = map(int, run.stdout.split())
    assert after < 100 < before
