"""`python -m benchmarks.gpu_eval --data DAVIS --out FOLDER`: what a GPU makes of the evaluation, in one run.

The `paper` protocol at 480×880 with a full context, stage by stage: decode and resize (on the CPU), features, affinity
and labels, read-out; each in float32 and with 16 bits. The share of the roofline is the least time in which the
arithmetic and the memory traffic that nothing can avoid would be done, at the rates of a matrix product and of a copy
measured in the same run, divided by the time taken. Then the sequences of DAVIS from files to J and F, float32 against
16 bits, which must agree within 0.1 point. Parts that no longer fit into the time are left out and named.

Legend: F context frames, h w patch grid, N = h·w patches, D width, M labels, H W pixels.
"""

import argparse
import itertools
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from benchmarks.evaluation_speed import objects
from benchmarks.gpu_train import Bench
from cli.feature_sources import open_source
from common.errors import InputError
from evaluation.benchmarks.davis import Davis
from evaluation.controls import Copy, Oracle
from evaluation.features import model_source
from evaluation.follow import resize_frame
from evaluation.labels import patches_to_mask
from evaluation.propagation import Context, propagate_step
from evaluation.protocols import Protocol, protocol
from evaluation.run import evaluate
from evaluation.videos import read_frame
from mae.models_mae import MAEEncoder

MODELS = {"S/16": (384, 12, 6), "B/16": (768, 12, 12), "tiny/16": (48, 2, 6)}  # width, depth, heads
MOST_POINTS = 0.1  # of J&F between float32 and 16 bits
STAGES = ("decode, resize", "features", "affinity, labels", "read-out")


@dataclass(frozen=True)
class Settings:
    """seconds: of a measured stretch; product, copy: sides of the matrices for the rates; budget: seconds in all."""

    models: tuple[str, ...] = ("S/16", "B/16")
    size: tuple[int, int] = (480, 880)
    context: int = 20
    radius: float = 20
    labels: int = 3
    batch: int = 8
    seconds: float = 1.5
    product: int = 8192
    copy: int = 16384
    budget: float = 500.0
    frames: int | None = None

    @property
    def grid(self) -> tuple[int, int]:
        return self.size[0] // 16, self.size[1] // 16

    @property
    def rules(self) -> Protocol:
        size = "{}x{}".format(*self.size)
        return protocol("paper").with_(size=size, context=self.context, radius=self.radius)


SMOKE = Settings(("tiny/16",), (96, 144), 2, 3, 3, 2, 0.01, product=64, copy=256, frames=4)


def build(name: str) -> MAEEncoder:
    """A model of the seed 0, on the CPU."""
    width, depth, heads = MODELS[name]
    torch.manual_seed(0)
    return MAEEncoder(224, 16, width, depth, heads).eval()


def rates(bench: Bench) -> dict[str, float]:
    """FLOP/s of matrix products in float32 and float16, and bytes/s of a copy (read and written)."""
    side, found = bench.settings.product, {}
    for kind in _formats(bench.device):
        a, b = (torch.randn(side, side, device=bench.device).to(getattr(torch, kind)) for _ in range(2))
        found[kind] = 2 * side**3 / bench.seconds_of(partial(torch.mm, a, b, out=torch.empty_like(a)))
    side = cast(Any, bench.settings).copy
    source = torch.zeros(side, side, device=bench.device)
    target = torch.empty_like(source)
    found["bytes"] = 2 * source.nbytes / bench.seconds_of(lambda: target.copy_(source))
    return found


def pairs(settings: Settings) -> int:
    """How many (target, source) pairs the protocol lets take part in a step with a full context, all frames together.

    The first frame counts whole; the others within the radius, Euclidean and strict.
    """
    h, w = settings.grid
    near = sum(
        (h - abs(y)) * (w - abs(x))
        for y, x in itertools.product(range(1 - h, h), range(1 - w, w))
        if y * y + x * x < settings.radius**2
    )
    return (h * w) ** 2 + settings.context * near


def needs(settings: Settings, model: str, stage: str, bytes_each: int) -> tuple[float, float]:
    """FLOPs and bytes of a frame that nothing can avoid. Weights are read once a frame.

    Read-out: the protocol's M maps at the size of the input, written and read once, in float32.
    """
    width, depth, _ = MODELS[model]
    N = settings.grid[0] * settings.grid[1]
    tokens, M = N + 1, settings.labels
    if stage == "features":
        parameters = depth * 12 * width**2 + 768 * width
        attention = depth * 2 * tokens**2 * width
        flops = 2 * (depth * 12 * width**2 * tokens + 768 * width * N + attention)
        return flops, parameters * bytes_each + 3 * N * 256 + 4 * N * width
    if stage == "affinity, labels":
        frames = 1 + settings.context
        return 2.0 * pairs(settings) * width, (frames + 1) * N * width * bytes_each + (frames + 1) * N * M * 4
    return 0.0, 2.0 * M * settings.size[0] * settings.size[1] * 4


def measure_stages(
    bench: Bench, settings: Settings, name: str, found_rates: dict[str, float], picture: Path
) -> list[dict[str, Any]]:
    """Seconds a frame of each stage in each number format, and the share of the roofline."""
    device, (h, w), rules, width = bench.device, settings.grid, settings.rules, MODELS[name][0]
    model, frames, M = build(name), settings.context + 1, settings.labels
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (settings.batch, 3, *settings.size), dtype=torch.uint8, generator=generator)
    # as `propagate` keeps them: the long side first
    features = functional.normalize(torch.randn(frames + 1, w, h, width, generator=generator), dim=-1).to(device)
    labels = torch.rand(frames, w, h, M, generator=generator).softmax(-1).to(device)
    rows: list[dict[str, Any]] = []

    def row(stage: str, kind: str, batch: int, work: Callable[[], Any]) -> None:
        seconds = bench.seconds_of(work) / batch
        found: dict[str, Any] = {"stage": stage, "format": kind, "batch": batch, "seconds": seconds}
        if stage != STAGES[0]:
            flops, size = needs(settings, name, stage, 2 if kind == "float16" else 4)
            arithmetic, traffic = flops / found_rates[kind], size / found_rates["bytes"]
            found |= {"gflop": flops / 1e9, "megabytes": size / 1e6, "share": max(arithmetic, traffic) / seconds}
            found["bound by"] = "arithmetic" if arithmetic > traffic else "memory"
        rows.append(found)

    row(STAGES[0], "uint8", 1, lambda: torch.from_numpy(resize_frame(read_frame(picture), settings.size)).to(device))
    for kind in _formats(device):
        encode = model_source(name, model, device=str(device), half=kind == "float16").encode
        for batch in (1, settings.batch):
            row(STAGES[1], kind, batch, partial(encode, images[:batch].to(device)))
        kept = features.to(getattr(torch, kind))
        context = Context(kept[:-1], labels, near=0, far=1)
        row(STAGES[2], kind, 1, partial(propagate_step, kept[-1], context, rules))
    values = np.arange(M, dtype=np.uint8)
    soft = labels[0].transpose(0, 1).contiguous()
    row(STAGES[3], "float32", 1, partial(patches_to_mask, soft, values, settings.size, (480, 854), rules))
    return rows


def _formats(device: torch.device) -> tuple[str, ...]:
    return ("float32", "float16") if device.type == "cuda" else ("float32",)


def whole(bench: Bench, settings: Settings, data: Path, name: str) -> dict[str, Any]:
    """The sequences of DAVIS 2016's list from files to J and F, in each number format."""
    rows: dict[str, Any] = {}
    for kind in _formats(bench.device):
        source = open_source(name, Path(), str(bench.device), kind == "float16")
        if isinstance(source, Copy | Oracle):
            raise InputError(f"{name} is a control, which has no features to compute in another format")
        lines: list[str] = []
        start = time.perf_counter()
        found = evaluate(
            Davis(data, 2016), source, settings.rules, frames=settings.frames, batch=settings.batch, report=lines.append
        )
        seconds = time.perf_counter() - start
        frames = sum(record["frames"] for record in found.records)
        rows[kind] = {
            "J&F": 100 * found.row["J&F-Mean"], "seconds": seconds, "frames": frames,
            "frames_a_second": frames / seconds, "lines": lines,
        }  # fmt: skip
    result: dict[str, Any] = {"source": name, "protocol": str(settings.rules), "rows": rows}
    if "float16" in rows:
        result["points between formats"] = abs(rows["float16"]["J&F"] - rows["float32"]["J&F"])
    return result


def measure(settings: Settings, device: torch.device, data: Path | None, source: str) -> dict[str, Any]:
    """Everything, ready for JSON."""
    start = time.monotonic()
    bench = Bench(cast(Any, settings), device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU: the figures say nothing about a GPU"
    result: dict[str, Any] = {"device": name, "torch": torch.__version__, "settings": asdict(settings), "models": {}}
    result["rates"] = rates(bench)
    with tempfile.TemporaryDirectory() as folder:
        picture = next(Davis(data, 2016).videos()).paths[0] if data is not None else Path(folder) / "picture.jpg"
        if data is None:
            Image.fromarray(np.repeat(80 * objects(0, 0)[..., None], 3, axis=2)).save(picture, quality=95)
        for model in settings.models:
            if bench.time_for(model, 20 * settings.seconds):
                result["models"][model] = measure_stages(bench, settings, model, result["rates"], picture)
    if data is None:
        bench.left_out.append("the sequences of DAVIS: no --data")
    elif bench.time_for("the sequences of DAVIS", 60 * settings.seconds):
        result["whole"] = whole(bench, settings, data, source)
    return {**result, "left_out": bench.left_out, "total": time.monotonic() - start}


def table(result: dict[str, Any]) -> str:
    """What `measure` found, to read."""
    found = result["rates"]
    products = ", ".join(f"{kind} {rate / 1e12:.3g} TFLOP/s" for kind, rate in found.items() if kind != "bytes")
    size = "×".join(map(str, result["settings"]["size"]))
    lines = [
        f"{result['device']}, torch {result['torch']}, {result['total']:.0f} s in all",
        f"matrix product: {products}; copy: {found['bytes'] / 1e9:.4g} GB/s (read and written)",
    ]
    for name, rows in result["models"].items():
        lines += ["", f"{name} at {size}, {result['settings']['context']} context frames and the first"]
        for row in rows:
            line = (
                f"  {row['stage']:<18}{row['format']:<9}batch {row['batch']:>2}  {1e3 * row['seconds']:9.3f} ms a frame"
            )
            if "share" in row:
                line += f"  {row['share']:6.1%} of the roofline ({row['bound by']})"
            lines.append(line)
    if "whole" in result:
        whole_ = result["whole"]
        lines += ["", f"DAVIS from files to J and F, {whole_['source']}, {whole_['protocol']}"]
        for kind, row in whole_["rows"].items():
            lines.append(
                f"  {kind:<9} J&F {row['J&F']:.2f}, {row['frames']} frames in {row['seconds']:.1f} s: "
                f"{row['frames_a_second']:.1f} frames/s"
            )
        if "points between formats" in whole_:
            points = whole_["points between formats"]
            verdict = "" if points <= MOST_POINTS else ": MISSED"
            lines.append(f"  16 bits differ by {points:.3f} point (asked ≤ {MOST_POINTS}{verdict})")
    if result["left_out"]:
        lines += ["", f"left out: {'; '.join(result['left_out'])}"]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="DAVIS's folder, for the part from files to J and F")
    parser.add_argument("--source", default="random", help="features of that part, as for `siammae eval`")
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu_eval.json and gpu_eval.txt")
    parser.add_argument("--smoke", action="store_true", help="in small, also on a CPU")
    options = parser.parse_args(arguments)
    if not (options.smoke or torch.cuda.is_available()):
        raise InputError("there is no GPU here; --smoke runs everything in small on the CPU")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    result = measure(SMOKE if options.smoke else Settings(), device, options.data, options.source)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "gpu_eval.json").write_text(json.dumps(result, indent=2))
    (options.out / "gpu_eval.txt").write_text(table(result) + "\n")
    print(table(result))


if __name__ == "__main__":
    main()
