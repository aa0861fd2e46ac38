"""Freed memory is kept: a second step asks the system for next to nothing."""

import sys

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
def test_a_second_step_takes_the_memory_of_the_first(trainer, tmp_path):
    (tmp_path / "steps.py").write_text(CODE)
    codes, said = trainer.run(["python", tmp_path / "steps.py"], root=tmp_path)
    assert codes == [0], said
    before, after = map(int, said.split())
    assert after < 100 < before
