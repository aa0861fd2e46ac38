"""Label propagation: a patch takes the labels of the patches of earlier frames that look most like it.

Exact and bounded: targets are taken in tiles, each compared only with what its radius reaches, so that neither time nor
memory is spent on pairs that the protocol forbids; the result is that of the dense computation.

Legend: F context frames, h w patch grid, N = h·w patches, T targets in a tile, S sources that a frame offers to a tile,
C all candidates of a tile, D width, M labels (background included), k the protocol's top_k.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from math import ceil, floor, inf, isqrt
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from common.errors import InputError
from evaluation.protocols import Protocol

Affinity = Callable[[Tensor, Tensor], Tensor]
"""How alike the patches of a target are to those of context frames, in place of cosines: what a source's `encode` gave
of the target [h, w, D] and of the context [F, h, w, D] → [F, h, w, h, w], the target's places first."""

# Bytes for the similarities of a tile, which bound the memory and never change the result (on the CPU a tile is fastest
# while it stays in the cache), and what a source costs a tile whatever its targets, in targets: to enter a matrix
# product, and to be copied where a tile is narrower than the grid (measured on one core; on a GPU many small launches
# are what is to be avoided).
BUDGETS = {"cpu": 8 * 2**20, "cuda": 512 * 2**20}
STARTS = {"cpu": 22, "cuda": 4096}
COPYING = 25
# Ties are looked for everywhere on a GPU: that costs less there than to wait for where they are.
LOOK_AT_ALL = {"cpu": False, "cuda": True}


class Block(NamedTuple):
    """Candidates of a tile in F frames: similarities [F, T, S] and where they lie among all F·N patches, [F, S].

    barrier: 0 or −∞ (too far away), [T, S], None if all are near; counts: how often each counts, [F, T, S] broadcast.
    """

    similarity: Tensor
    sources: Tensor
    barrier: Tensor | None
    counts: Tensor | None


class Context(NamedTuple):
    """The frames that labels come from: features [F, h, w, D] (normalised, unless an `Affinity` compares them) and soft
    labels [F, h, w, M], frame 0 first.

    Frame 0 counts `near` times for targets within the radius and `far` times more for all; the others once, within it.
    A step is fastest where h is the long side of the grid.
    """

    features: Tensor
    labels: Tensor
    near: int
    far: int


def propagate(
    features: Iterable[Tensor],
    first: Tensor,
    protocol: Protocol,
    *,
    oracle: Callable[[int], Tensor | None] | None = None,
    affinity: Affinity | None = None,
) -> Iterator[Tensor]:
    """Features [h, w, D] of frames in order, and the first one's labels [h, w, M] → soft labels of the others in order.

    Features of each frame are asked for once, and the context alone is kept; it lies on their device, in float32
    whatever they are, as labels do. `oracle`, for a control alone, hands out the true labels [h, w, M] of a frame,
    which then stand in the context for the predicted. affinity: in place of cosines.
    """
    stream = iter(features)
    frame = next(stream)
    if frame.shape[:2] != first.shape[:2]:
        raise InputError(f"labels of {_grid(first)} patches do not fit to features of {_grid(frame)} patches")
    turned = affinity is None and frame.shape[0] < frame.shape[1]  # rows along the long side: tiles of them are slim

    def turn(values: Tensor) -> Tensor:
        return values.transpose(0, 1) if turned else values

    def prepared(frame: Tensor) -> Tensor:
        return frame.float() if affinity else F.normalize(turn(frame).float(), dim=-1)

    shape, frame, first = frame.shape, prepared(frame), turn(first)
    n = protocol.context
    kept_features = frame.new_empty(1 + n, *frame.shape)  # slot 0: the first frame; then a ring of the last n
    kept_labels = torch.empty(1 + n, *first.shape, device=frame.device)
    kept_features[0], kept_labels[0] = frame, first
    for t, frame in enumerate(stream):
        if frame.shape != shape:
            raise InputError(f"frame {t + 1} has {_grid(frame)} patches, the first one {shape[0]}×{shape[1]}")
        frame = prepared(frame)
        used = min(t, n)
        copies = n - used if protocol.filled else 0
        near, far = (copies, 1) if protocol.first_unlimited else (copies + 1, 0)
        context = Context(kept_features[: 1 + used], kept_labels[: 1 + used], near, far)
        labels = propagate_step(frame, context, protocol, affinity)
        if n:
            true = oracle(t + 1) if oracle else None
            kept_features[1 + t % n], kept_labels[1 + t % n] = frame, labels if true is None else turn(true)
        yield turn(labels).contiguous()


@torch.no_grad()
def propagate_step(target: Tensor, context: Context, protocol: Protocol, affinity: Affinity | None = None) -> Tensor:
    """Normalised features of a target frame [h, w, D] and its context → its soft labels [h, w, M]."""
    h, w, _ = target.shape
    whole = affinity(target, context.features) if affinity else None
    device = "cpu" if target.device.type == "cpu" else "cuda"
    budget, start, frames = BUDGETS[device], STARTS[device], len(context.features)
    labels = context.labels.flatten(0, 2)  # [F·N, M]
    result = target.new_empty(h, w, labels.shape[1], dtype=torch.float32)
    for tile in tiles(h, w, frames, protocol, budget, whole_first=context.far > 0, start=start):
        blocks = _candidates(target, tile, context, protocol, whole)
        result[tile] = _mix(blocks, labels, protocol).view_as(result[tile])
    return result


def tiles(
    h: int, w: int, frames: int, protocol: Protocol, budget: int, *, whole_first: bool, start: int = STARTS["cpu"]
) -> Iterator[tuple[slice, slice]]:
    """Rectangles of targets that cover the grid, small enough for their similarities to fit into the budget (bytes)."""
    height, width = _tile_size(h, w, frames, _reach(protocol), budget, whole_first, start)
    for y in range(0, h, height):
        for x in range(0, w, width):
            yield slice(y, min(y + height, h)), slice(x, min(x + width, w))


@lru_cache(maxsize=256)
def _tile_size(h: int, w: int, frames: int, reach: int, budget: int, whole_first: bool, start: int) -> tuple[int, int]:
    """The tile (height, width) within the budget that costs least.

    Large tiles look at pairs that the radius forbids, small ones keep a matrix product from its speed: a tile of T
    targets and C candidates costs C · (T + start), and more where the candidates do not lie together in memory.
    """

    def spans(n: int, side: int) -> tuple[int, int, int]:
        """Of all tiles in one direction: sources · targets, sources, and the most sources of one."""
        ends = [(low, min(low + side, n)) for low in range(0, n, side)]
        sources = [min(n, high + reach) - max(0, low - reach) for low, high in ends]
        return sum(s * (high - low) for s, (low, high) in zip(sources, ends, strict=True)), sum(sources), max(sources)

    best, least = (1, 1), inf
    rows = {side: spans(h, side) for side in {ceil(h / n) for n in range(1, h + 1)}}
    columns = {side: spans(w, side) for side in {ceil(w / n) for n in range(1, w + 1)}}
    for height, (row_pairs, row_sources, most_rows) in rows.items():
        for width, (column_pairs, column_sources, most_columns) in columns.items():
            S, firsts = most_rows * most_columns, h * w if whole_first else 0
            near = frames - whole_first
            if height * width * (firsts + (near + 1) * S) * 4 > budget:
                continue
            count = ceil(h / height) * ceil(w / width)
            begin = start + (COPYING if width < w else 0)
            cost = near * (row_pairs * column_pairs + begin * row_sources * column_sources)
            cost += firsts * (h * w + start * count)
            if cost < least:
                best, least = (height, width), cost
    return best


def _candidates(
    target: Tensor, tile: tuple[slice, slice], context: Context, protocol: Protocol, whole: Tensor | None
) -> list[Block]:
    """What a tile may take its labels from: frame 0 as a whole if it is exempt from the radius, and all others' near
    patches. whole: similarities [F, h, w, h, w] that an `Affinity` gave.
    """
    frames, h, w, _ = context.features.shape
    reach, device, queries = _reach(protocol), target.device, target[tile].flatten(0, 1)

    def similarities(frames: slice, rows: slice, columns: slice) -> Tensor:  # [F, T, S]
        if whole is None:
            return _similarities(queries, context.features[frames, rows, columns])
        return whole[frames, tile[0], tile[1], rows, columns].flatten(3, 4).flatten(1, 2)

    rows, columns = (slice(max(0, t.start - reach), min(n, t.stop + reach)) for t, n in zip(tile, (h, w), strict=True))
    place = torch.arange(frames * h * w, device=device).view(frames, h, w)
    blocks, begin = [], 0
    if context.far:
        counts = None
        if context.near:
            barrier = _barrier(*_axes(tile, (slice(0, h), slice(0, w))), protocol.radius, protocol.shape, device)
            near = torch.ones(1, 1, device=device) if barrier is None else (barrier == 0).float()
            counts = (context.far + context.near * near)[None]
        similarity = similarities(slice(0, 1), slice(None), slice(None))
        blocks, begin = [Block(similarity, place[:1].flatten(1), None, counts)], 1
    if begin < frames:
        barrier = _barrier(*_axes(tile, (rows, columns)), protocol.radius, protocol.shape, device)
        counts = None
        if not begin and context.near > 1:
            counts = torch.ones(frames, 1, 1, device=device)
            counts[0] = context.near
        similarity = similarities(slice(begin, None), rows, columns)
        blocks.append(Block(similarity, place[begin:, rows, columns].flatten(1), barrier, counts))
    return blocks


def _best(block: Block, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The k best candidates of each target in a block: similarities, sources and how often they count, [T, k] each.

    What lies at one place in all frames is a group: the k best lie in the k groups with the largest maxima. The barrier
    is the same for a whole group, so that it is added to maxima alone.
    """
    similarity, sources, barrier, counts = block
    frames, T, S = similarity.shape
    peaks = similarity.amax(0) if frames > 1 else similarity[0]
    if barrier is not None:
        peaks = peaks + barrier
    values, places = top(peaks, min(k, S))
    members = places.expand(frames, -1, -1)  # [F, T, k]
    frame = torch.zeros_like(places)
    if frames > 1:
        values = similarity.gather(2, members)
        if barrier is not None:
            values += barrier.gather(1, places)
        values, order = values.transpose(0, 1).flatten(1).topk(min(k, frames * places.shape[1]))
        frame, places = order // places.shape[1], places.gather(1, order % places.shape[1])
    often = torch.ones_like(values)
    if counts is not None:
        often = counts.expand_as(similarity)[frame, torch.arange(T, device=frame.device)[:, None], places]
    return values, sources[frame, places], often


def _mix(blocks: list[Block], labels: Tensor, protocol: Protocol) -> Tensor:
    """The candidates of a tile → the mean of the best ones' labels [T, M], weighted as the protocol says."""
    k, C = protocol.top_k, sum(block.sources.numel() for block in blocks)
    looked_at = k + (protocol.weights == "cut")  # one more shows a tie for the last place
    found = [_best(block, looked_at) for block in blocks]
    values, sources, often = (
        torch.cat(column, 1) if len(found) > 1 else column[0] for column in zip(*found, strict=True)
    )
    if len(found) > 1:
        values, order = values.topk(min(looked_at, C))
        sources, often = sources.gather(1, order), often.gather(1, order)
    before = often.cumsum(1) - often  # how much of the k is taken by better ones
    best = values[:, :1]
    if protocol.weights == "softmax":
        taken = torch.minimum(often, (k - before).clamp(min=0))
        return _weighted(((values - best) / protocol.temperature).exp() * taken, labels, sources)
    last = values.masked_fill(before >= k, inf).amin(1, keepdim=True)  # the k-th value [T, 1]
    if LOOK_AT_ALL.get(values.device.type, True) and C > k:
        return _cut(blocks, labels, best, last, protocol, slice(None))
    kept = ((values - best) / protocol.temperature).exp() * often * (values >= last)
    mixed = _weighted(kept, labels, sources)
    if C > k:  # more may reach the k-th value than were looked at
        tied = ((values[:, -1:] == last) & (last > -inf)).squeeze(1)
        if tied.any():
            mixed[tied] = _cut(blocks, labels, best, last, protocol, tied)
    return mixed


def _cut(
    blocks: list[Block], labels: Tensor, best: Tensor, last: Tensor, protocol: Protocol, targets: Tensor | slice
) -> Tensor:
    """For targets of a tile, the mean of the labels of *all* candidates that reach the k-th value, `last` [T, 1]."""
    mixed, total = labels.new_zeros(1), labels.new_zeros(1)
    for similarity, places, barrier, counts in blocks:
        rows = similarity[:, targets] if barrier is None else similarity[:, targets] + barrier[targets]  # [F, T, S]
        weights = ((rows - best[targets]) / protocol.temperature).exp() * (rows >= last[targets])
        if counts is not None:
            weights *= counts.expand_as(similarity)[:, targets]
        weights = weights.transpose(0, 1).flatten(1)
        mixed = mixed + weights @ labels[places.flatten()]
        total = total + weights.sum(1, keepdim=True)
    return mixed / total


def top(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest values of each row [T, C] and their places, [T, k] each, in descending order: what topk returns.

    The k largest lie in the k groups with the largest maxima, and maxima are far cheaper than a selection.
    """
    rows, C = values.shape
    size = isqrt(C // k)  # about k groups' members are looked at after as many maxima
    if size < 2:
        return values.topk(k)
    groups = C // size
    whole, rest = values[:, : groups * size].unflatten(1, (size, groups)), values[:, groups * size :]
    chosen = whole.amax(1).topk(k, sorted=False).indices  # [T, k]: members lie `groups` apart
    members = chosen[:, :, None] + groups * torch.arange(size, device=values.device)  # [T, k, size]
    tail = torch.arange(groups * size, C, device=values.device).expand(rows, -1)
    places = torch.cat([members.flatten(1), tail], dim=1)
    best, order = torch.cat([values.gather(1, members.flatten(1)), rest], dim=1).topk(k)
    return best, places.gather(1, order)


def _similarities(queries: Tensor, keys: Tensor) -> Tensor:
    """Cosines [F, T, S] of normalised features [T, D] and [F, rows, columns, D].

    Keys that do not lie together in memory are copied, a frame at a time, so that the copies stay small.
    """
    frames, rows, columns, _ = keys.shape
    if keys.stride(1) == columns * keys.stride(2):
        return torch.bmm(queries.expand(frames, -1, -1), keys.flatten(1, 2).transpose(1, 2))
    result = queries.new_empty(frames, len(queries), rows * columns)
    for out, frame in zip(result, keys.unbind(), strict=True):
        torch.mm(queries, frame.flatten(0, 1).T, out=out)
    return result


def _weighted(weights: Tensor, labels: Tensor, places: Tensor) -> Tensor:
    """Weights [T, k], labels [F·N, M], places [T, k] → [T, M]; the weights are made to sum to 1 here."""
    weights = weights / weights.sum(1, keepdim=True)
    return torch.bmm(weights[:, None], labels[places]).squeeze(1)


class Axis(NamedTuple):
    """Targets and sources along one side of the grid: how many, and where among the sources the first target lies."""

    targets: int
    sources: int
    begin: int


def _axes(targets: tuple[slice, slice], sources: tuple[slice, slice]) -> Iterator[Axis]:
    return (Axis(t.stop - t.start, s.stop - s.start, t.start - s.start) for t, s in zip(targets, sources, strict=True))


@lru_cache(maxsize=32)  # about as many as the tiles of a frame; each is smaller than the similarities of its tile
def _barrier(down: Axis, across: Axis, radius: float, shape: str, device: torch.device) -> Tensor | None:
    """[T, S]: 0 where sources lie within the radius of targets, −∞ elsewhere; None where all lie within it."""

    def within(rows: Any, columns: Any) -> Any:
        if shape == "square":
            return (rows <= radius) & (columns <= radius)
        return rows**2 + columns**2 <= (floor(radius**2) if shape == "circle" else ceil(radius**2) - 1)

    if radius == 0 or within(*(max(a.begin + a.targets - 1, a.sources - 1 - a.begin) for a in (down, across))):
        return None
    rows, columns = (
        (
            torch.arange(a.begin, a.begin + a.targets, device=device)[:, None] - torch.arange(a.sources, device=device)
        ).abs()
        for a in (down, across)
    )  # [targets, sources] along each side
    inside = within(rows[:, :, None, None], columns).transpose(1, 2).flatten(2, 3).flatten(0, 1)
    return torch.zeros(inside.shape, device=device).masked_fill_(~inside, -inf)


def _reach(protocol: Protocol) -> int:
    """How many rows or columns away a source may lie at most."""
    if protocol.radius == 0:
        return 2**30
    return ceil(protocol.radius) - 1 if protocol.shape == "disk" else floor(protocol.radius)


def _grid(frame: Tensor) -> str:
    return f"{frame.shape[0]}×{frame.shape[1]}"
