"""Label propagation: a patch takes the labels of the patches of earlier frames that look most like it.

Exact and bounded: targets are taken in tiles, each compared only with what its radius reaches, so that neither time nor
memory is spent on pairs that the protocol forbids; the result is that of the dense computation.

Legend: F context frames, h w patch grid, N = h·w patches, T targets in a tile, S sources that a frame offers to a tile,
C all candidates of a tile, D width, M labels (background included), k the protocol's top_k.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from math import ceil, floor, inf, isqrt
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from evaluation.protocols import Protocol
from mae.files import InputError

# Memory for the similarities of a tile (on the CPU a tile is fastest while it stays in the cache), and what beginning
# one costs, in targets (measured on one core; on a GPU many small launches are what is to be avoided).
BUDGETS = {"cpu": 8 * 2**20, "cuda": 512 * 2**20}
STARTS = {"cpu": 40, "cuda": 4096}


class Context(NamedTuple):
    """The frames that labels come from: normalised features [F, h, w, D] and soft labels [F, h, w, M], frame 0 first.

    Frame 0 counts `near` times for targets within the radius and `far` times more for all; the others once, within it.
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
    budget: int | None = None,
    oracle: Callable[[int], Tensor | None] | None = None,
) -> Iterator[Tensor]:
    """Features [h, w, D] of frames in order, and the first one's labels [h, w, M] → soft labels of the others in turn.

    Features of each frame are asked for once, and the context alone is kept; it lies on their device, in their number
    format. `budget` bounds the bytes for similarities (`BUDGETS`), never the result. Labels are float32. `oracle`, for
    a control alone, hands out the true labels [h, w, M] of a frame, which then stand in the context for the predicted.
    """
    stream = iter(features)
    frame = F.normalize(next(stream), dim=-1)
    if frame.shape[:2] != first.shape[:2]:
        raise InputError(f"labels of {_grid(first)} patches do not fit to features of {_grid(frame)} patches")
    n = protocol.context
    kept_features = frame.new_empty(1 + n, *frame.shape)  # slot 0: the first frame; then a ring of the last n
    kept_labels = torch.empty(1 + n, *first.shape, device=frame.device)
    kept_features[0], kept_labels[0] = frame, first
    for t, frame in enumerate(stream):
        if frame.shape != kept_features.shape[1:]:
            raise InputError(f"frame {t + 1} has {_grid(frame)} patches, the first one {_grid(kept_features[0])}")
        frame = F.normalize(frame, dim=-1)
        used = min(t, n)
        copies = n - used if protocol.filled else 0
        near, far = (copies, 1) if protocol.first_unlimited else (copies + 1, 0)
        context = Context(kept_features[: 1 + used], kept_labels[: 1 + used], near, far)
        labels = propagate_step(frame, context, protocol, budget=budget)
        if n:
            true = oracle(t + 1) if oracle else None
            kept_features[1 + t % n], kept_labels[1 + t % n] = frame, labels if true is None else true
        yield labels


@torch.no_grad()
def propagate_step(target: Tensor, context: Context, protocol: Protocol, *, budget: int | None = None) -> Tensor:
    """Normalised features of a target frame [h, w, D] and its context → its soft labels [h, w, M]."""
    h, w, _ = target.shape
    device = "cpu" if target.device.type == "cpu" else "cuda"
    budget, start, frames = budget or BUDGETS[device], STARTS[device], len(context.features)
    labels = context.labels.flatten(0, 2)  # [F·N, M]
    result = target.new_empty(h, w, labels.shape[1], dtype=torch.float32)
    for tile in tiles(h, w, frames, protocol, budget, whole_first=context.far > 0, start=start):
        part = target[tile]
        similarity, sources, counts = _candidates(part.flatten(0, 1), tile, context, protocol)
        mixed = _mix(similarity, sources, counts, labels, protocol)
        result[tile] = mixed.unflatten(0, part.shape[:2])
    return result


def tiles(
    h: int, w: int, frames: int, protocol: Protocol, budget: int, *, whole_first: bool, start: int = 40
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
    targets and C candidates costs C · (T + start).
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
            cost = near * (row_pairs * column_pairs + start * row_sources * column_sources)
            cost += firsts * (h * w + start * count)
            if cost < least:
                best, least = (height, width), cost
    return best


def _candidates(
    queries: Tensor, tile: tuple[slice, slice], context: Context, protocol: Protocol
) -> tuple[Tensor, Tensor, Tensor | None]:
    """What a tile may take its labels from: similarities [T, C] (−∞: too far), where each candidate lies among all
    F·N patches [C], and how often those of frame 0 count [T, C₀], None where each counts once.
    """
    frames, h, w, _ = context.features.shape
    reach, device = _reach(protocol), queries.device
    rows, columns = (slice(max(0, t.start - reach), min(n, t.stop + reach)) for t, n in zip(tile, (h, w), strict=True))
    near = rows, columns
    place = torch.arange(h * w, device=device).unflatten(0, (h, w))
    window = place[near].flatten()  # [S]
    allowed = _inside(tile, near, protocol, device)  # [T, S]
    first, inside = window, allowed  # [C₀], [T, C₀]
    if context.far:
        first, inside = place.flatten(), _inside(tile, (slice(0, h), slice(0, w)), protocol, device)

    similarity = queries.new_empty(len(queries), len(first) + (frames - 1) * len(window), dtype=torch.float32)
    nearby, firsts = similarity[:, len(first) :], similarity[:, : len(first)]
    _similarities(queries, context.features[0].flatten(0, 1)[first], firsts)
    for index in range(1, frames):
        keys = context.features[index][near].flatten(0, 1)  # [S, D]
        _similarities(queries, keys, nearby[:, (index - 1) * len(window) : index * len(window)])
    if not allowed.all():
        barrier = torch.zeros_like(allowed, dtype=torch.float32).masked_fill_(~allowed, -inf)
        (nearby if context.far else similarity).unflatten(1, (-1, len(window))).add_(barrier[:, None])
    offsets = torch.arange(1, frames, device=device)[:, None] * (h * w)
    sources = torch.cat([first, (offsets + window).flatten()])
    counts = context.far + context.near * inside.float() if context.near and context.far + context.near > 1 else None
    return similarity, sources, counts


def _mix(similarity: Tensor, sources: Tensor, counts: Tensor | None, labels: Tensor, protocol: Protocol) -> Tensor:
    """Similarities [T, C] → the mean of the best candidates' labels [T, M], weighted as the protocol says."""
    C, k = similarity.shape[1], protocol.top_k
    values, places = top(similarity, min(k + (protocol.weights == "cut"), C))  # one more shows a tie for the last place
    often = torch.ones_like(values)
    if counts is not None:
        often = torch.where(places < counts.shape[1], counts.gather(1, places.clamp(max=counts.shape[1] - 1)), often)
    before = often.cumsum(1) - often  # how much of the k is taken by better ones
    best = values[:, :1]
    if protocol.weights == "softmax":
        taken = torch.minimum(often, (k - before).clamp(min=0))
        return _weighted(((values - best) / protocol.temperature).exp() * taken, labels, sources[places])
    last = values.masked_fill(before >= k, inf).amin(1, keepdim=True)  # the k-th value [T, 1]
    kept = ((values - best) / protocol.temperature).exp() * often * (values >= last)
    mixed = _weighted(kept, labels, sources[places])
    tied = ((values[:, -1:] == last) & (last > -inf)).squeeze(1) if C > k else torch.zeros(0, dtype=torch.bool)
    if tied.any():  # more may reach the k-th value than were looked at: these targets look at all
        rows = similarity[tied]
        weights = ((rows - best[tied]) / protocol.temperature).exp() * (rows >= last[tied])
        if counts is not None:
            weights[:, : counts.shape[1]] *= counts[tied]
        mixed[tied] = (weights @ labels[sources]) / weights.sum(1, keepdim=True)
    return mixed


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


def _similarities(queries: Tensor, keys: Tensor, out: Tensor) -> None:
    """Cosines of normalised features [T, D] and [S, D] into `out` [T, S], in float32 whatever the features are."""
    if queries.dtype == torch.float32:
        torch.mm(queries, keys.T, out=out)
    elif queries.is_cuda:
        out.copy_(torch.mm(queries, keys.T, out_dtype=torch.float32))  # products in half, sums and result in full
    else:
        torch.mm(queries.float(), keys.float().T, out=out)


def _weighted(weights: Tensor, labels: Tensor, places: Tensor) -> Tensor:
    """Weights [T, k], labels [F·N, M], places [T, k] → [T, M]; the weights are made to sum to 1 here."""
    weights = weights / weights.sum(1, keepdim=True)
    return torch.bmm(weights[:, None], labels[places]).squeeze(1)


def _inside(
    targets: tuple[slice, slice], sources: tuple[slice, slice], protocol: Protocol, device: torch.device
) -> Tensor:
    """Whether the sources of one rectangle lie within the radius of the targets of another: [T, S]."""
    down, across = (
        (torch.arange(t.start, t.stop, device=device)[:, None] - torch.arange(s.start, s.stop, device=device)).abs()
        for t, s in zip(targets, sources, strict=True)
    )  # [rows of targets, rows of sources] and the same of columns
    if protocol.radius == 0:
        inside = torch.ones(*down.shape, *across.shape, dtype=torch.bool, device=device)
    elif protocol.shape == "square":
        inside = (down <= protocol.radius)[:, :, None, None] & (across <= protocol.radius)
    else:
        squares = down.square().float()[:, :, None, None] + across.square().float()
        inside = squares < protocol.radius**2
    return inside.transpose(1, 2).flatten(2, 3).flatten(0, 1)


def _reach(protocol: Protocol) -> int:
    """How many rows or columns away a source may lie at most."""
    if protocol.radius == 0:
        return 2**30
    return floor(protocol.radius) if protocol.shape == "square" else ceil(protocol.radius) - 1


def _grid(frame: Tensor) -> str:
    return f"{frame.shape[0]}×{frame.shape[1]}"
