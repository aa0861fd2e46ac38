"""CONTRIBUTING says how to add a masking, a mask strategy, a decoder, a loss, a data set, a benchmark: each is done in
a copy here."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NEW = ""  # a file that is not there yet
MASKING = """def first_half(noise, mask_ratio, steps):
    places = torch.arange(noise.shape[1]).expand(len(noise), -1)
    return _keep_smallest(places, noise.shape[1] // 2)


"""
STRATEGY = """def first_ones(noise, step, scores):
    return -torch.arange(noise.shape[1]).expand(len(noise), -1)


"""
DECODER = """class LinearBlock(nn.Module):
    def __init__(self, dim, num_heads, mlp_ratio):
        super().__init__()
        self.linear = nn.Linear(dim, dim)

    def forward(self, x, memory):
        return x + self.linear(memory)[:, : x.shape[1]]


"""
LOSS = """def huber(prediction, target):
    return F.huber_loss(prediction, target, reduction="none").mean(dim=-1)


"""
DATA = """import numpy as np


class Noise:
    def __init__(self, count):
        self.names = [f"noise {k}" for k in range(int(count))]

    def open(self, number):
        return NoiseClip(self.names[number])

    def __str__(self):
        return "noise"


class NoiseClip:
    times = np.arange(60) / 30

    def __init__(self, path):
        self.path = path

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def frames(self, numbers):
        rng = np.random.default_rng(int(numbers[0]))
        return rng.integers(256, size=(len(numbers), 80, 96, 3), dtype=np.uint8), self.times[numbers]
"""
BENCHMARK = """from dataclasses import dataclass

from evaluation.benchmarks.camvid import CamVid


@dataclass(frozen=True)
class Cells(CamVid):
    '''Cells under a microscope.'''

    classes = 2
    void = classes
"""

# (file, what is there, what is written before it) for each of the changes that an addition takes.
ADDITIONS = {
    "masking": [
        ("mae/masking.py", "MASKINGS: dict", MASKING),
        ("mae/masking.py", '    "tube": ', '    "half": first_half,\n'),
        ("ml/config.py", '"agnostic", "tube"', '"half", '),
    ],
    "mask strategy": [
        ("ml/extensions/hiding.py", "Lesson = ", STRATEGY),
        ("ml/extensions/hiding.py", '    "hard": ', '    "first": Strategy(first_ones),\n'),
        ("ml/config.py", '"random", "hard"', '"first", '),
    ],
    "decoder": [
        ("ml/decoders.py", "class DecoderBlocks", DECODER),
        ("ml/decoders.py", '    "cross": ', '    "linear": DecoderBlocks(LinearBlock),\n'),
        ("ml/config.py", '"cross-self", "cross"', '"linear", '),
    ],
    "loss": [
        ("mae/patches.py", "# To add a loss", LOSS),
        ("mae/patches.py", '"l1": absolute_error', '"huber": huber, '),
        ("ml/config.py", '"mse", "l1"', '"huber", '),
    ],
    "data set": [
        ("dataset_loader/noise.py", NEW, DATA),
        ("dataset_loader/sources.py", '    "pictures": ', '    "noise": Noise,\n'),
        ("dataset_loader/sources.py", "from dataset_loader.packed", "from dataset_loader.noise import Noise\n"),
    ],
    "benchmark": [
        ("evaluation/benchmarks/cells.py", NEW, BENCHMARK),
        ("evaluation/benchmarks/__init__.py", '    "camvid": ', '    "cells": Cells,\n'),
        (
            "evaluation/benchmarks/__init__.py",
            "from evaluation.benchmarks.davis",
            "from evaluation.benchmarks.cells import Cells\n",
        ),
    ],
}
USES = """
import torch
from cli.main import main
from dataset_loader import get_kinetics_dataset
from ml.presets import preset
from ml.SiamMAE import build_model

pair = get_kinetics_dataset("noise:3", image_size=64)[0]["video"].reshape(1, 2, 3, 64, 64)
micro = preset("micro").config.replace(decoder_kind="linear", loss="huber", mask_strategy="first")
model = build_model(micro.model.model, **micro.model_arguments)
model.before_step(9, 10)
loss, _, mask = model(pair)
loss.backward()
assert mask[0, -1] == 0 and mask[0, 0] == 1
assert model.decoder.blocks[0].linear.weight.grad.abs().sum() > 0
clips = preset("mae_st_micro").config.replace(mask_kind="half", mask_ratio=0.5)
model = build_model(clips.model.model, **clips.model_arguments)
_, _, mask = model(torch.randint(256, (1, 8, 3, 64, 64), dtype=torch.uint8))
half = mask.shape[1] // 2
assert mask[0, :half].sum() == 0 and mask[0, half:].mean() == 1
try:
    main(["eval", "cells", "--help"])
except SystemExit as end:
    assert end.code == 0
"""


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A copy of the packages with all six additions in it."""
    copy = tmp_path_factory.mktemp("house")
    for package in ("common", "mae", "ml", "dataset_loader", "evaluation", "cli"):
        shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    for changes in ADDITIONS.values():
        for name, there, new in changes:
            path = copy / name
            text = path.read_text() if there else ""
            assert text.count(there) == 1 if there else not path.exists(), f"{name}: {there!r}"
            path.write_text(text.replace(there, new + there) if there else new)
    return copy


@pytest.mark.parametrize("what", ADDITIONS)
def test_an_addition_touches_at_most_two_files(what, house):
    files = {name for name, _, _ in ADDITIONS[what]}
    assert len(files) <= 2
    for name in files:
        compile((house / name).read_text(), name, "exec")


@pytest.mark.slow
def test_each_addition_works_by_its_name(house):
    result = subprocess.run([sys.executable, "-c", USES], capture_output=True, text=True, cwd=house, check=False)
    assert result.returncode == 0, result.stderr
