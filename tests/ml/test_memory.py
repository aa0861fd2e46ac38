"""Freed memory is kept: a second step asks the system for next to nothing."""

import sys

import pytest

# 40 tensors of half a megabyte, too small for large pages, and first the thresholds that the C library starts with.
CODE = """
import ctypes, resource, torch
from ml.devices import keep_freed_memory
torch.set_num_threads(1)
mallopt = ctypes.CDLL(None).mallopt
assert mallopt(-1, 2**17) and mallopt(-3, 2**17)
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensors = [torch.ones(2**17) for _ in range(40)]
    del tensors
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
before = min(faults() for _ in range(4))
assert keep_freed_memory()
print(before, min(faults() for _ in range(4)))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems have no mallopt")
def test_a_second_step_takes_the_memory_of_the_first(trainer, tmp_path):
    (tmp_path / "steps.py").write_text(CODE)
    codes, said = trainer.run(["python", tmp_path / "steps.py"], root=tmp_path)
    assert codes == [0], said
    before, after = map(int, said.split())
    if not before:
        pytest.skip("this system counts no page faults")
    assert 10 * after < before
