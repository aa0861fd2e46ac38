"""What a training step should take on a GPU, reckoned on a CPU from what it reads, writes and multiplies.

A step runs on tensors without content; each dispatched operator that is no view counts as one kernel, which takes as
long as the slowest of its arithmetic, its memory traffic and the shortest kernel. `compiled` is the best that a
compiler can do: all kernels between two matrix products are one, which reads what comes from outside and writes what
goes outside. The rates below are assumptions; nothing here was measured on a GPU.

Legend: B pairs in a step.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from benchmarks.counting import flops_a_pair
from ml.config import RunConfig
from ml.memory import pairs_that_fit, rehearse
from ml.SiamMAE import SiamMAE, build_model

NOMINAL = 989.4e12  # FLOP/s of an H100 or H200 in bfloat16, dense, as its maker says
PRODUCTS = 0.70  # of it, that large matrix products reach
BANDWIDTH = {"H100": 0.88 * 3.35e12, "H200": 0.88 * 4.8e12}  # bytes/s: of the maker's figure what a copy reaches
SHORTEST = 2.5e-6  # seconds of the shortest kernel, with the gap behind it
# FLOP/s of fused attention over some 200 tokens by width of a head, forward and backward
ATTENTION = {64: (220e12, 170e12), 32: (120e12, 90e12)}
ADAMW = 28  # bytes a parameter: weight, gradient and two moments are read, all but the gradient written
MODELS = {"siammae_small_patch16": 256, "siammae_base_patch16": 256, "siammae_large_patch16": 128}
MEMORY = 80_000_000_000  # of an H100

VIEWS = {
    "view", "_unsafe_view", "transpose", "permute", "t", "expand", "unsqueeze", "squeeze", "slice", "select", "split",
    "split_with_sizes", "unbind", "detach", "alias", "as_strided", "_reshape_alias", "lift_fresh", "empty",
    "empty_like", "new_empty", "new_empty_strided", "empty_strided",
}  # fmt: skip
KINDS = {
    "layer norm": ("layer_norm",), "GELU": ("gelu",), "sums over rows": ("sum", "mean"),
    "copies, casts, gathers": ("copy", "clone", "cat", "index", "gather", "scatter", "sort"),
}  # fmt: skip


@dataclass(frozen=True)
class Kernel:
    """reads, writes: bytes by number of the storage. rate: FLOP/s that it can reach."""

    kind: str
    flops: float
    rate: float
    reads: dict[int, int]
    writes: dict[int, int]


class _Kernels(TorchDispatchMode):
    """Notes every kernel. Storages are held, so that each has a number of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Kernel] = []
        self._storages: dict[int, Any] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        packet, name = function.overloadpacket, function.overloadpacket.__name__
        if name in VIEWS or not any(isinstance(value, Tensor) for value in tree_leaves(out)):
            return out  # nothing runs on the device
        flops = flop_registry[packet](*args, **(kwargs or {}), out_val=out) if packet in flop_registry else 0
        kind, rate = "other elementwise", NOMINAL * PRODUCTS
        if "scaled_dot_product" in name:
            backward = "backward" in name
            kind, rate = "attention", ATTENTION[args[1 if backward else 0].shape[-1]][backward]
        elif flops:
            kind = "matrix products"
        else:
            kind = next((kind for kind, words in KINDS.items() if any(word in name for word in words)), kind)
        self.found.append(Kernel(kind, flops, rate, self._bytes((args, kwargs)), self._bytes(out)))
        return out

    def _bytes(self, values: Any) -> dict[int, int]:
        sizes: dict[int, int] = {}
        for tensor in tree_leaves(values):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self._storages[storage._cdata] = storage
                seen = tensor.element_size()  # an expanded axis is read once
                for length, stride in zip(tensor.shape, tensor.stride(), strict=True):
                    seen *= length if stride else 1
                sizes[storage._cdata] = min(storage.nbytes(), sizes.get(storage._cdata, 0) + seen)
        return sizes


def fused(kernels: list[Kernel]) -> Iterator[Kernel]:
    """The same with all between two products as one kernel: inside it nothing goes through memory."""
    last_read = {storage: k for k, kernel in enumerate(kernels) for storage in kernel.reads}
    for alone, group in groupby(enumerate(kernels), lambda item: item[1].kind in ("attention", "matrix products")):
        run = list(group)
        if alone:
            yield from (kernel for _, kernel in run)
            continue
        reads: dict[int, int] = {}
        writes: dict[int, int] = {}
        for _, kernel in run:
            for storage, size in kernel.reads.items():
                if storage not in writes:
                    reads[storage] = max(size, reads.get(storage, 0))
            writes |= kernel.writes
        end = run[-1][0]
        outside = {storage: size for storage, size in writes.items() if last_read.get(storage, end + 1) > end}
        yield Kernel("fused by the compiler", 0.0, NOMINAL, reads, outside)


def seconds_by_kind(kernels: list[Kernel], parameters: int, bandwidth: float) -> dict[str, float]:
    """How long the device works on each kind, AdamW included."""
    seconds: dict[str, float] = defaultdict(float)
    for kernel in kernels:
        traffic = sum(kernel.reads.values()) + sum(kernel.writes.values())
        seconds[kernel.kind] += max(kernel.flops / kernel.rate, traffic / bandwidth, SHORTEST)
    seconds["AdamW"] = ADAMW * parameters / bandwidth
    return dict(seconds)


def kernels_of(name: str, batch: int) -> tuple[SiamMAE, list[Kernel]]:
    """The kernels of a step of a named model, 95 % hidden, in bfloat16; the model holds no numbers."""
    with torch.device("meta"):
        model: Any = build_model(name, mask_ratio=0.95)
    watch = _Kernels()
    rehearse(model, batch, model.sample_shape, watch, bfloat16=True)
    return model, watch.found


def reckon(models: dict[str, int] | None = None) -> list[dict[str, Any]]:
    """A row for each model at its batch, ready for JSON."""
    rows = []
    for name, batch in (models or MODELS).items():
        model, kernels = kernels_of(name, batch)
        parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
        flops = flops_a_pair(model) * batch
        config = RunConfig().replace(model=name, image_size=model.grid[0] * model.patch_size)
        row: dict[str, Any] = {
            "model": name, "batch": batch, "gflop a pair": flops / batch / 1e9, "kernels": len(kernels),
            "GB read and written": sum(sum(k.reads.values()) + sum(k.writes.values()) for k in kernels) / 1e9,
            "pairs in 80 GB": pairs_that_fit(config, MEMORY),
        }  # fmt: skip
        for how, taken in (("eager", kernels), ("compiled", list(fused(kernels)))):
            for gpu, bandwidth in BANDWIDTH.items():
                kinds = seconds_by_kind(taken, parameters, bandwidth)
                seconds = sum(kinds.values())
                row[f"{how}, {gpu}"] = {
                    "kernels": len(taken), "ms": 1e3 * seconds, "pairs_a_second": batch / seconds,
                    "share of nominal": flops / seconds / NOMINAL,
                    "kinds": {kind: part / seconds for kind, part in sorted(kinds.items(), key=lambda x: -x[1])},
                }  # fmt: skip
        rows.append(row)
    return rows


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table of docs/results.md: of each way the share of a matrix product's rate (of the nominal rate), pairs/s."""
    lines = [
        "| reckoned, not measured | GFLOP a pair | kernels, GB (eager) | fit in 80 GB | H100 eager | H100 compiled | "
        "H200 eager | H200 compiled |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [
            f"{row[key]['share of nominal'] / PRODUCTS:.0%} ({row[key]['share of nominal']:.0%}), "
            f"{row[key]['pairs_a_second']:,.0f}"
            for key in ("eager, H100", "compiled, H100", "eager, H200", "compiled, H200")
        ]
        lines.append(
            f"| {row['model']}, {row['batch']} pairs | {row['gflop a pair']:.0f} | {row['kernels']:,}, "
            f"{row['GB read and written']:.0f} | {row['pairs in 80 GB']:,} pairs | {' | '.join(cells)} |"
        )
    return "\n".join(lines)
