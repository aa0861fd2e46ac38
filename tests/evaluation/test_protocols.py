"""The protocols' numbers stand here once more, as the table of their sources gives them."""

import dataclasses

import pytest

from common.errors import InputError
from evaluation.benchmarks import BENCHMARKS
from evaluation.protocols import NAMED, Protocol, protocol

COLUMNS = ("size", "context", "top_k", "radius", "shape", "temperature", "weights", "first_unlimited", "filled")
TABLE = {
    ("paper", "davis"): ("480x880", 20, 7, 20, "disk", 0.7, "softmax", True, True),
    ("paper", "vip"): ("long880", 20, 10, 20, "disk", 0.7, "softmax", True, True),
    ("paper", "jhmdb"): ("320x320", 20, 7, 20, "disk", 0.7, "softmax", True, True),
    ("rsp", "davis"): ("short480", 30, 7, 30, "square", 0.1, "cut", False, False),
    ("dino", "davis"): ("short480", 7, 5, 12, "square", 0.1, "cut", False, False),
    ("dinov3", "davis"): ("least960", 7, 5, 12, "circle", 0.2, "cut", False, False),
}


@pytest.mark.parametrize(("name", "benchmark"), TABLE)
def test_numbers_are_those_of_the_sources(name, benchmark):
    chosen = BENCHMARKS[benchmark].protocol(BENCHMARKS[benchmark], name)
    assert tuple(getattr(chosen, column) for column in COLUMNS) == TABLE[name, benchmark]
    assert (chosen.reduce, chosen.min_max) == (("bilinear", False) if name == "paper" else ("nearest", True))


@pytest.mark.parametrize(
    ("size", "frame", "patch", "expected"),
    [
        ("480x880", (480, 854), 16, (480, 880)),
        ("short480", (480, 854), 16, (480, 832)),
        ("short480", (1080, 1920), 8, (480, 832)),
        ("short480", (854, 480), 16, (832, 480)),
        ("short480", (480, 910), 16, (480, 896)),
        ("short480", (300, 300), 16, (480, 448)),  # also a square: only the other side is cut
        ("long880", (720, 1280), 16, (448, 880)),
        ("long880", (1280, 720), 16, (880, 448)),
        ("320x320", (240, 320), 16, (320, 320)),
        ("480x880", (480, 854), 14, (476, 868)),
        ("least960", (480, 854), 16, (960, 1712)),  # 1708 wide
        ("least960", (854, 480), 16, (1712, 960)),
        ("least960", (480, 800), 14, (966, 1610)),
    ],
)
def test_sizes_of_the_input(size, frame, patch, expected):
    assert protocol("paper", size=size).input_size(*frame, patch_size=patch) == expected


def test_every_field_may_be_overridden_and_is_printed():
    others = dict(
        name="mine", size="240x432", context=3, filled=False, top_k=2, radius=5.5, shape="square",
        first_unlimited=False, temperature=0.25, weights="cut", reduce="nearest", enlarge="nearest",
        min_max=True,
    )  # fmt: skip
    base = protocol()
    assert set(others) == {field.name for field in dataclasses.fields(Protocol)}
    for name, value in others.items():
        changed = base.with_(**{name: value})
        assert getattr(changed, name) == value != getattr(base, name)
        assert str(changed.with_(name="paper")) != str(base) or name == "name"  # visible apart from the changed name
        assert "changed" in str(changed) or name == "name"
    assert "\n" not in str(base)
    assert len({str(protocol(name)) for name in NAMED}) == len(NAMED)
    assert protocol(top_k=7) == protocol()  # the same value is no change


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"top_k": 0}, "top_k is 0"),
        ({"radius": -1}, "radius is -1"),
        ({"radius": float("nan")}, "radius is nan"),
        ({"context": -1}, "context is -1"),
        ({"temperature": 0}, "temperature is 0"),
        ({"size": "480"}, "size is '480'; expected such as 480x880"),
        ({"shape": "oval"}, "shape is 'oval'; expected disk or circle or square"),
        ({"topk": 5}, "no topk; its fields are name, size"),
    ],
)
def test_wrong_values_are_named(overrides, message):
    with pytest.raises(InputError, match=message):
        protocol(**overrides)


def test_unknown_names_are_answered_with_the_known_ones():
    with pytest.raises(InputError, match="'crw'; there are paper, rsp, dino, dinov3"):
        protocol("crw")
    assert protocol("dino", {"size": "320x320"}).name == "dino"  # a benchmark's own form of it is no change
    with pytest.raises(InputError, match="leave no patch"):
        protocol(size="short64").input_size(100, 40, patch_size=80)
