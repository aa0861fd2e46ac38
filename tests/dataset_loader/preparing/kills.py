"""Killing a program at random moments, again and again."""

import random
import subprocess
import sys
import time
from collections.abc import Callable

import pytest


def kill_at_random_moments(
    code: str, kills: int, seed: int, *, progress: Callable[[], object], run_to_the_end: Callable[[], None]
) -> None:
    """Kill programs of this code until so many were caught in the middle, at most three between two runs to the end.

    progress: changes once a program has got beyond its imports, which are not what is to be disturbed.
    """
    generator = random.Random(seed)
    caught = 0
    for attempt in range(10 * kills):
        before = progress()
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
        while process.poll() is None and progress() == before:
            time.sleep(0.005)
        time.sleep(generator.uniform(0, 0.5))
        caught += process.poll() is None
        process.kill()
        process.wait()
        if attempt % 3 == 2 or caught == kills:
            run_to_the_end()
        if caught == kills:
            return
    pytest.fail(f"only {caught} runs were caught in the middle")
