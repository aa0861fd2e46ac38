"""Words that people read."""

import pytest

from common.words import counted


@pytest.mark.parametrize(
    ("number", "noun", "said"),
    [(0, "pair", "0 pairs"), (1, "batch", "1 batch"), (2, "batch", "2 batches"), (3, "process", "3 processes"),
     (20043, "packed shard", "20,043 packed shards")],
)  # fmt: skip
def test_a_number_and_its_noun(number, noun, said):
    assert counted(number, noun) == said
