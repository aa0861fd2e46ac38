"""`python -m benchmarks.training_speed`: the training step on the CPU, side by side with the plain ones, in ratios.

Each row is the median over paired repeats of ratios within a repeat, with its interval; one thread, wall clock.
The matrix-multiply rate is that of a large square product in the same repeats. A step is forward and
backward; the optimiser is measured by itself. Memory is measured in processes of its own.

Legend: B pairs in a step (pasts, times futures), P processes.
"""

import argparse
import ctypes
import json
import multiprocessing
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.counting import count, noise_batch
from benchmarks.plain_evaluation import median_and_interval
from benchmarks.plain_training import PlainSiamMAE
from ml.devices import keep_freed_memory
from ml.SiamMAE import MODELS, Model, build_model

# (row, at least)
DEMANDS = {
    "speed to SDPA baseline": 0.95,
    "share of matrix rate": 0.85,
    "futures=2, pairs/s": 1.5,
    "two processes": 1.7,
}
MILLION = 1e6


@dataclass(frozen=True)
class Settings:
    """batch: pairs in a step. product: side of the square matrices. memory_models, memory_batch: for the memory, with
    samples in a batch."""

    model: str = "siammae_small_patch16"
    mask_ratio: float = 0.95
    batch: int = 8
    repeats: int = 7
    product: int = 2048
    memory_models: tuple[str, ...] = (
        "siammae_small_patch16", "siammae_base_patch16", "mae_st_base_patch16", "mae_st_large_patch16"
    )  # fmt: skip
    memory_batch: int = 4


SMOKE = Settings(
    model="siammae_micro_patch8", batch=2, repeats=2, product=256,
    memory_models=("siammae_micro_patch8", "mae_st_micro_patch8"),
)  # fmt: skip


def step(model: nn.Module, batch: dict[str, Any]) -> None:
    """Forward and backward, with fresh gradients."""
    for parameter in model.parameters():
        parameter.grad = None
    model(**batch)[0].backward()


def in_turn(ways: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each way in each repeat; the order turns, and one unmeasured round comes first."""
    names = list(ways)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for repeat in range(-1, repeats):
        for name in names[repeat % len(names) :] + names[: repeat % len(names)]:
            start = time.perf_counter()
            ways[name]()
            if repeat >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(above: Sequence[float], below: Sequence[float], factor: float = 1.0) -> dict[str, float]:
    """Median and interval of factor · above / below, repeat by repeat."""
    middle, low, high = median_and_interval([factor * a / b for a, b in zip(above, below, strict=True)])
    return {"median": middle, "low": low, "high": high}


def measure_steps(settings: Settings) -> dict[str, Any]:
    """Ours against both baselines, the matrix rate, two futures, and checkpointing."""
    torch.manual_seed(0)
    model = build_model(settings.model, mask_ratio=settings.mask_ratio)
    plain = {kind: PlainSiamMAE(model, kind) for kind in ("sdpa", "explicit")}
    pairs, shared = noise_batch(model, settings.batch), noise_batch(model, settings.batch // 2, futures=2)
    cost = count(lambda: model(**pairs)[0])
    side = settings.product
    a, b, c = torch.randn(side, side), torch.randn(side, side), torch.empty(side, side)

    def checkpointed() -> None:
        model.encoder.checkpointing = model.decoder.checkpointing = True
        step(model, pairs)
        model.encoder.checkpointing = model.decoder.checkpointing = False

    seconds = in_turn(
        {
            "ours": lambda: step(model, pairs),
            "sdpa": lambda: step(plain["sdpa"], pairs),
            "explicit": lambda: step(plain["explicit"], pairs),
            "futures": lambda: step(model, shared),
            "checkpointing": checkpointed,
            "product": lambda: [torch.mm(a, b, out=c) for _ in range(4)],
        },
        settings.repeats,
    )
    rates = [4 * 2 * side**3 / s for s in seconds["product"]]
    return {
        "seconds": {name: median_and_interval(values)[0] for name, values in seconds.items()},
        "gflop_a_pair": cost.flops / settings.batch / 1e9,
        "product_gflops": median_and_interval(rates)[0] / 1e9,
        "rows": {
            "speed to SDPA baseline": ratio(seconds["sdpa"], seconds["ours"]),
            "speed to explicit baseline": ratio(seconds["explicit"], seconds["ours"]),
            "share of matrix rate": ratio([cost.flops / r for r in rates], seconds["ours"]),
            "futures=2, pairs/s": ratio(seconds["ours"], seconds["futures"]),
            "checkpointing, time": ratio(seconds["checkpointing"], seconds["ours"]),
        },
    }


def measure_optimizers(settings: Settings) -> dict[str, Any]:
    """AdamW over all parameters of the model: fused, foreach, and one tensor after the other."""
    kinds: dict[str, dict[str, bool]] = {"fused": dict(fused=True), "foreach": dict(foreach=True), "plain": {}}
    ways: dict[str, Callable[[], Any]] = {}
    for name, options in kinds.items():
        parameters = [p for p in build_model(settings.model).parameters() if p.requires_grad]
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)
        ways[name] = torch.optim.AdamW(parameters, lr=1e-4, **{"foreach": False, **options}).step  # type: ignore[arg-type]
    seconds = in_turn(ways, settings.repeats)
    return {
        "seconds": {f"AdamW {name}": median_and_interval(values)[0] for name, values in seconds.items()},
        "rows": {f"fused AdamW to {name}": ratio(seconds[name], seconds["fused"]) for name in ("foreach", "plain")},
    }


def _rank(rank: int, store: str, settings: Settings, out: str) -> None:
    """One of two processes: in turn rank 0 steps alone while the other waits, and both step with shared gradients."""
    import torch.distributed as dist

    torch.set_num_threads(1)
    keep_freed_memory()
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = build_model(settings.model, mask_ratio=settings.mask_ratio)
    together, batch = nn.parallel.DistributedDataParallel(model), noise_batch(model, settings.batch)

    def alone() -> None:
        if rank == 0:
            step(model, batch)
        dist.barrier()

    def both() -> None:
        step(together, batch)
        dist.barrier()

    dist.barrier()
    seconds = in_turn({"alone": alone, "both": both}, settings.repeats)
    if rank == 0:
        Path(out).write_text(json.dumps(seconds))
    dist.destroy_process_group()


def measure_processes(settings: Settings) -> dict[str, Any]:
    """Pairs per second of two gloo processes with a thread each (DDP), to those of one with a thread."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "seconds.json"
        processes = [
            context.Process(target=_rank, args=(rank, f"{folder}/store", settings, str(out))) for rank in range(2)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        if any(process.exitcode for process in processes):
            raise RuntimeError("a process of the two ended with an error; its traceback stands above")
        seconds = json.loads(out.read_text())
    return {
        "seconds": {name: median_and_interval(values)[0] for name, values in seconds.items()},
        "rows": {"two processes": ratio(seconds["alone"], seconds["both"], factor=2)},
    }


def _memory(line: str) -> float:
    """Bytes of this process by a line of Linux's status: VmRSS now, VmHWM at the peak since `_forget_peak`."""
    status = Path("/proc/self/status").read_text()
    return next(int(row.split()[1]) * 1024 for row in status.splitlines() if row.startswith(line))


def _forget_peak() -> float:
    """Give freed memory back, and count the peak from here; the bytes that are left."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _memory("VmRSS")


def memory_of(name: str, batch: int, checkpointing: bool) -> dict[str, Any]:
    """MB a sample (pair or clip) at the peak of forward and of backward, beyond weights and their gradients, and what
    autograd keeps. The mask ratio is the paper's: 95 %, of clips 90 %."""
    torch.manual_seed(0)
    model: Model = build_model(name, mask_ratio=0.9 if name.startswith("mae_st") else 0.95, checkpointing=checkpointing)
    data = noise_batch(model, batch)
    step(model, noise_batch(model, 1))  # gradients and the libraries' own buffers are there from now on
    before = _forget_peak()
    loss = model(**data)[0]
    forward = _memory("VmHWM") - before
    loss.backward()
    found = {"forward": forward, "backward": _memory("VmHWM") - before}
    del loss
    found["kept"] = count(lambda: model(**data)[0], model.parameters()).kept
    per_pair = {f"{what} MB a sample": value / batch / MILLION for what, value in found.items()}
    return {"model": name, "checkpointing": checkpointing, **per_pair}


def measure_memory(settings: Settings) -> list[dict[str, Any]]:
    """Each model, with and without checkpointing, in a process of its own."""
    rows = []
    for name in settings.memory_models:
        code = (
            "import json, torch; torch.set_num_threads(1); from benchmarks.training_speed import memory_of; "
            f"print(json.dumps([memory_of({name!r}, {settings.memory_batch}, c) for c in (False, True)]))"
        )
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        rows += json.loads(run.stdout.splitlines()[-1])
    return rows


def measure(settings: Settings) -> dict[str, Any]:
    """Everything, ready for JSON."""
    torch.set_num_threads(1)
    keep_freed_memory()
    parts = [measure_steps(settings), measure_optimizers(settings), measure_processes(settings)]
    result: dict[str, Any] = {"settings": asdict(settings), "machine": platform.processor(), "torch": torch.__version__}
    result |= {"gflop_a_pair": parts[0]["gflop_a_pair"], "product_gflops": parts[0]["product_gflops"]}
    for key in ("seconds", "rows"):
        result[key] = {name: value for part in parts for name, value in part[key].items()}
    for name, least in DEMANDS.items():
        result["rows"][name]["at_least"] = least
    result["memory"] = measure_memory(settings)
    result["load"] = os.getloadavg()[0]
    return result


def table(result: dict[str, Any]) -> str:
    """What `measure` found, to read."""
    settings = result["settings"]
    lines = [
        f"{settings['model']}, {settings['batch']} pairs, {settings['mask_ratio']:.0%} hidden, one thread, torch "
        f"{result['torch']}; {result['gflop_a_pair']:.1f} GFLOP a pair, a matrix product runs at "
        f"{result['product_gflops']:.0f} GFLOP/s; load of the machine at the end {result['load']:.1f}",
        "",
        *(f"{name:<28}{value:9.4f} s" for name, value in result["seconds"].items()),
        "",
    ]
    for name, row in result["rows"].items():
        wanted = ""
        if "at_least" in row:
            wanted = f"   asked ≥ {row['at_least']}" + ("" if row["median"] >= row["at_least"] else ": MISSED")
        lines.append(f"{name:<28}{row['median']:7.3f}  ({row['low']:.3f} … {row['high']:.3f}){wanted}")
    lines.append("")
    for row in result["memory"]:
        name = row["model"] + (", checkpointing" if row["checkpointing"] else "")
        lines.append(f"{name:<40}" + "  ".join(f"{what} {row[what]:.1f}" for what in row if "MB" in what))
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="a small model, seconds; says nothing about speed")
    parser.add_argument("--model", choices=list(MODELS), help="in place of ViT-S/16")
    parser.add_argument("--batch", type=int, help="pairs in a step")
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    options = parser.parse_args(arguments)
    chosen = {name: getattr(options, name) for name in ("model", "batch", "repeats") if getattr(options, name)}
    result = measure(replace(SMOKE if options.smoke else Settings(), **chosen))
    print(table(result))
    if options.out:
        options.out.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
