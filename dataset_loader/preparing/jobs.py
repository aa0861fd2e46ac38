"""x"""

import re
from collections.abc import Sequence
from typing import TypeVar

from common.errors import InputError

T = TypeVar("T")


def take_shard(things: Sequence[T], shard: str) -> list[T]:
    """The things that shard "i/n" has to do, i from 1 to n: every n-th, so that no two shards share one.

    The sequence must be the same on every machine.
    """
    numbers = re.fullmatch(r"(\d+)/(\d+)", shard)
    i, n = (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)
    if not 1 <= i <= n:
        raise InputError(f"the shard is {shard!r}; it must be i/n, such as 1/8 … 8/8: the i-th of n machines")
    return list(things[i - 1 :: n])
