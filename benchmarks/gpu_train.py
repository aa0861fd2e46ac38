"""`python -m benchmarks.gpu_train --data VIDEOS --out FOLDER`: what a GPU makes of the training step, in one run.

For each model, batches are doubled until they no longer pay or fit; a step is forward in bfloat16, backward and fused
AdamW, with the data on the device. Its model FLOPs (the formula's least, attention's backward as twice its forward)
are set against a bfloat16 matrix product measured beside it. What was tried on top (compile, futures=2, checkpointing)
is measured at the best batch; then a profile by kernel; then training from the real loader, with the share of waiting.
Parts that no longer fit into the time are left out and named.

Legend: B pairs in a step.
"""

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.counting import attention_forward, least_products, noise_batch
from common.errors import InputError
from dataset_loader import get_kinetics_dataset, make_loader
from ml.SiamMAE import SiamMAE, build_model

# model: the share of the matrix rate that is aimed at
AIMS = {"siammae_small_patch16": 0.40, "siammae_base_patch16": 0.50, "siammae_large_patch16": 0.50}
# What a kernel's name holds → what it does, the first that fits.
KINDS = {
    "attention": ("flash", "fmha", "attention"),
    "matrix products": ("gemm", "cutlass", "nvjet", "xmma", "::mm", "addmm", "cublas"),
    "AdamW": ("adam", "multi_tensor"),
    "layer norm": ("layer_norm", "layernorm"),
    "GELU": ("gelu",),
    "sums over rows": ("reduce", "::sum"),
    "copies, casts, gathers": ("copy", "memcpy", "memset", "cat", "index", "gather", "fill"),
    "other elementwise": ("elementwise",),
}


@dataclass(frozen=True)
class Settings:
    """models, batches (pairs); seconds: of a measured stretch; product: side; budget: seconds for everything."""

    models: tuple[str, ...] = tuple(AIMS)
    batches: tuple[int, ...] = (64, 128, 256, 512, 1024)
    mask_ratio: float = 0.95
    seconds: float = 3.0
    product: int = 8192
    budget: float = 440.0
    image_size: int = 224
    loader_batch: int = 256


SMOKE = Settings(("siammae_micro_patch8",), (2, 4), seconds=0.05, product=128, image_size=64, loader_batch=4)


class Bench:
    """The device, the clock of the whole run, and what was left out."""

    def __init__(self, settings: Settings, device: torch.device) -> None:
        self.settings, self.device = settings, device
        self.bfloat16 = device.type == "cuda"  # without support in hardware it is a hundred times slower than float32
        self.end = time.monotonic() + settings.budget
        self.left_out: list[str] = []

    def time_for(self, what: str, seconds: float) -> bool:
        """Whether there is time for a part that takes so long; if not, it is written down."""
        if time.monotonic() + seconds < self.end:
            return True
        self.left_out.append(what)
        return False

    def seconds_of(self, work: Callable[[], Any]) -> float:
        """Mean seconds of one call, over a stretch that is long enough, after three unmeasured ones."""
        for _ in range(3):
            work()
        self.wait()
        calls, start = 0, time.perf_counter()
        while True:
            work()
            calls += 1
            if calls % 4 == 0 or self.device.type == "cpu":  # a GPU that is asked too often stands still meanwhile
                self.wait()
                if time.perf_counter() - start > self.settings.seconds:
                    return (time.perf_counter() - start) / calls

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def matrix_rate(self) -> float:
        """FLOP/s of a square matrix product, in bfloat16 on a GPU."""
        side, dtype = self.settings.product, torch.bfloat16 if self.bfloat16 else torch.float32
        a, b = (torch.randn(side, side, device=self.device, dtype=dtype) for _ in range(2))
        out = torch.empty_like(a)
        return 2 * side**3 / self.seconds_of(lambda: torch.mm(a, b, out=out))

    def step(self, model: SiamMAE, batch: dict[str, Any]) -> Callable[[], None]:
        """A whole step, ready to be called again and again."""
        optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-5, fused=True)

        def work() -> None:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
                loss = model(**batch)[0]
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return work

    def model(self, name: str, **options: Any) -> SiamMAE:
        torch.manual_seed(0)
        return build_model(name, mask_ratio=self.settings.mask_ratio, device=self.device, **options)


def flops_a_pair(model: SiamMAE, futures: int = 1) -> float:
    """Model FLOPs of a pair, forward and backward."""
    N = model.grid[0] * model.grid[1]
    return (least_products(model, 1, N, futures) + 3 * attention_forward(model, 1, N, futures)[0]) / futures


def measure_model(bench: Bench, name: str) -> dict[str, Any]:
    """The best batch, the share of the matrix rate there, what was tried on top, and where the time goes."""
    settings = bench.settings
    model = bench.model(name)
    rate, flops = bench.matrix_rate(), flops_a_pair(model)
    rows: list[dict[str, Any]] = []

    def row(what: str, pasts: int, **options: Any) -> dict[str, Any]:
        futures, compiled = options.pop("futures", 1), options.pop("compiled", False)
        built = bench.model(name, **options)
        if compiled:
            built.compile()
        if bench.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        pairs = pasts * futures
        speed = pairs / bench.seconds_of(bench.step(built, noise_batch(built, pasts, futures)))
        found = {
            "what": what, "batch": pairs, "pairs_a_second": speed,
            "share": speed * flops_a_pair(built, futures) / rate,
            "memory_gb": torch.cuda.max_memory_allocated() / 1e9 if bench.device.type == "cuda" else None,
        }  # fmt: skip
        rows.append(found)
        return found

    best: dict[str, Any] | None = None
    for batch in settings.batches:
        if best and not bench.time_for(f"{name}, batch {batch}", 3 * settings.seconds):
            break
        try:
            found = row("as it is", batch)
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
            rows.append({"what": "as it is", "batch": batch, "failed": "out of memory"})
            break
        if best and found["pairs_a_second"] < 1.01 * best["pairs_a_second"]:
            best = max(best, found, key=lambda each: each["pairs_a_second"])
            break
        best = found
    if best is None:
        raise InputError(f"{name}: a batch of {settings.batches[0]} pairs does not fit into this GPU's memory")
    tried: dict[str, dict[str, Any]] = {
        "futures=2": dict(pasts=max(1, best["batch"] // 2), futures=2),
        "checkpointing": dict(pasts=best["batch"], checkpointing=True),
        "decoder in float32": dict(pasts=best["batch"], decoder_float32=True),
    }
    if bench.device.type == "cuda":
        tried["compiled"] = dict(pasts=best["batch"], compiled=True)
    for what, options in tried.items():
        if bench.time_for(f"{name}, {what}", 45 if what == "compiled" else 3 * settings.seconds):
            try:
                row(what, **options)
            except Exception as error:  # what was tried on top must not take the rest with it
                rows.append({"what": what, "failed": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"})
    result = {
        "gflop_a_pair": flops / 1e9, "matrix_tflops": rate / 1e12, "best": best, "aim": AIMS.get(name), "rows": rows,
    }  # fmt: skip
    if bench.time_for(f"{name}, profile", 20):
        result["profile"] = profile(bench, bench.step(model, noise_batch(model, best["batch"])))
    return result


def profile(bench: Bench, work: Callable[[], None], steps: int = 3) -> dict[str, Any]:
    """Share of the kernels' time by what they do, the ten longest kernels, and the share in which none runs."""
    from torch.profiler import ProfilerActivity

    on_gpu = bench.device.type == "cuda"
    work()
    bench.wait()
    with torch.profiler.profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as recorded:
        start = time.perf_counter()
        for _ in range(steps):
            work()
        bench.wait()
        wall = time.perf_counter() - start
    kernels: dict[str, float] = defaultdict(float)
    for event in recorded.key_averages():
        seconds = (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e6
        if seconds:
            kernels[event.key] += seconds
    total = sum(kernels.values()) or 1.0
    kinds: dict[str, float] = defaultdict(float)
    for key, seconds in kernels.items():
        kind = next((k for k, words in KINDS.items() if any(word in key.lower() for word in words)), "the rest")
        kinds[kind] += seconds / total
    longest = sorted(kernels.items(), key=lambda item: -item[1])[:10]
    return {
        "idle": max(0.0, 1 - total / wall) if on_gpu else None,
        "kinds": dict(sorted(kinds.items(), key=lambda item: -item[1])),
        "longest": [{"kernel": key[:120], "share": seconds / total} for key, seconds in longest],
    }


def end_to_end(bench: Bench, name: str, data: str, workers: int) -> dict[str, Any]:
    """Pairs a second from the real loader, and the share of the time in which the step waited for it."""
    settings = bench.settings
    model = bench.model(name)
    dataset = get_kinetics_dataset(data, image_size=settings.image_size, repeated_sampling=2, visits=1000)
    loader = make_loader(dataset, settings.loader_batch, workers=workers, pin_memory=bench.device.type == "cuda")
    batch: dict[str, Any] = {}
    work = bench.step(model, batch)
    waited, pairs, start = 0.0, 0, 0.0
    batches = iter(loader)
    for number in range(10_000):
        asked = time.perf_counter()
        fetched = next(batches)
        got = time.perf_counter()
        batch["video"] = fetched["video"].to(bench.device, non_blocking=True)
        batch["seeds"] = fetched["seed"].to(bench.device, non_blocking=True)
        work()
        bench.wait()  # so that waiting for the GPU is not taken for waiting for data
        if number == 1:  # the loader's processes and the kernels have started
            start, waited, pairs = time.perf_counter(), 0.0, 0
        elif number > 1:
            waited, pairs = waited + got - asked, pairs + len(fetched["video"])
            if time.perf_counter() - start > 5 * settings.seconds:
                break
    seconds = time.perf_counter() - start
    return {
        "model": name, "batch": settings.loader_batch, "workers": workers,
        "pairs_a_second": pairs / seconds, "waiting": waited / seconds,
    }  # fmt: skip


def measure(settings: Settings, device: torch.device, data: str | None, workers: int) -> dict[str, Any]:
    """Everything, ready for JSON."""
    start = time.monotonic()
    bench = Bench(settings, device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU: the figures say nothing about a GPU"
    result: dict[str, Any] = {"device": name, "torch": torch.__version__, "settings": asdict(settings), "models": {}}
    if data is not None:
        result["end_to_end"] = end_to_end(bench, settings.models[0], data, workers)
    for model in settings.models:
        if bench.time_for(model, 30 if device.type == "cuda" else 0):
            result["models"][model] = measure_model(bench, model)
    return {**result, "left_out": bench.left_out, "seconds": time.monotonic() - start}


def table(result: dict[str, Any]) -> str:
    """What `measure` found, to read."""
    lines = [f"{result['device']}, torch {result['torch']}, {result['seconds']:.0f} s in all"]
    for name, found in result["models"].items():
        best, aim = found["best"], found["aim"]
        lines += [
            "",
            f"{name}: {found['gflop_a_pair']:.0f} GFLOP a pair, matrix product {found['matrix_tflops']:.3g} TFLOP/s; "
            f"at best {best['share']:.1%} of it" + (f" (aim {aim:.0%})" if aim else ""),
        ]
        for row in found["rows"]:
            if "failed" in row:
                lines.append(f"  {row['what']:<20} {row['failed']}")
            else:
                memory = "" if row["memory_gb"] is None else f"  {row['memory_gb']:.1f} GB"
                lines.append(
                    f"  {row['what']:<20} batch {row['batch']:>5}  {row['pairs_a_second']:>9.1f} pairs/s  "
                    f"{row['share']:6.1%}{memory}"
                )
        if "profile" in found:
            lines.append("  " + ", ".join(f"{kind} {share:.0%}" for kind, share in found["profile"]["kinds"].items()))
            if found["profile"]["idle"] is not None:
                lines.append(f"  no kernel runs in {found['profile']['idle']:.0%} of the time")
    if "end_to_end" in result:
        row = result["end_to_end"]
        lines += [
            "",
            f"from the loader, {row['model']}, batch {row['batch']}, {row['workers']} workers: "
            f"{row['pairs_a_second']:.1f} pairs/s, waiting {row['waiting']:.0%}",
        ]
    if result["left_out"]:
        lines += ["", f"left out for lack of time: {'; '.join(result['left_out'])}"]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="a folder of videos or packed shards, for the part with the real loader")
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu_train.json and gpu_train.txt")
    parser.add_argument("--workers", type=int, default=8, help="loader processes")
    parser.add_argument("--smoke", action="store_true", help="in small, also on a CPU")
    options = parser.parse_args(arguments)
    if not (options.smoke or torch.cuda.is_available()):
        raise InputError("there is no GPU here; --smoke runs everything in small on the CPU")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    result = measure(SMOKE if options.smoke else Settings(), device, options.data, options.workers)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "gpu_train.json").write_text(json.dumps(result, indent=2))
    (options.out / "gpu_train.txt").write_text(table(result) + "\n")
    print(table(result))


if __name__ == "__main__":
    main()
