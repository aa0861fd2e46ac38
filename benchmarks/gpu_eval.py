"""`python -m benchmarks.gpu_eval --out FOLDER [--data DAVIS]`: what a GPU makes of the evaluation, in one run.

The `paper` protocol at 480×880 with a full context, stage by stage: what the host does in threads (decode and resize,
score, export), and what the device does (features, affinity and labels, read-out), in TF32 and with 16 bits. The share
of the roofline is the least time in which the arithmetic and the memory traffic that nothing can avoid would be done,
divided by the time taken; the rates are those of a matrix product and of a copy measured in the same run, and beside
them the vendor's. Then the sequences of DAVIS 2016 and 2017 from files to J and F; TF32 and 16 bits must agree with
float32 within 0.1 point. Without --data the sequences are synthetic, in DAVIS's layout.

gpu_eval.json is written after every row, and what may take longest comes last: the deadline (--seconds) or a kill
leaves the rows that are finished. What no longer fits is left out and named.

Legend: F context frames, h w patch grid, N = h·w patches, D width, M labels, H W pixels.
"""

import argparse
import itertools
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from benchmarks.rows import Rows
from cli.feature_sources import open_source
from cli.synthetic_scenes import write_davis
from common.errors import InputError
from common.files import write_text
from dataset_loader.synthetic import synthetic_video
from evaluation.benchmarks.davis import Davis
from evaluation.controls import Copy, Oracle
from evaluation.features import model_source
from evaluation.follow import resize_frame
from evaluation.labels import patches_to_mask
from evaluation.metrics import region_and_contour
from evaluation.pictures import save_mask
from evaluation.propagation import Context, propagate_step
from evaluation.protocols import Protocol, protocol
from evaluation.run import first_frames, records
from evaluation.videos import read_frame, read_mask
from mae.models_mae import MAEEncoder

MODELS = {"S/16": (384, 12, 6), "B/16": (768, 12, 12), "tiny/16": (48, 2, 6)}  # width, depth, heads
MOST_POINTS = 0.1  # of J&F between float32 and the faster formats
HOST = ("decode, resize", "truth, J and F", "export")  # in threads, beside the device
STAGES = (*HOST, "features", "affinity, labels", "read-out")
# FLOP/s that the vendor states for dense products, by what a device is called
NOMINAL = {"H100": {"float16": 989e12, "tf32": 494e12}, "H200": {"float16": 989e12, "tf32": 494e12}}


@dataclass(frozen=True)
class Settings:
    """seconds: of a measured stretch; product, copy: sides of the matrices for the rates; budget: seconds in all."""

    models: tuple[str, ...] = ("S/16", "B/16")
    size: tuple[int, int] = (480, 880)
    context: int = 20
    radius: float = 20
    labels: int = 3
    batch: int = 8
    seconds: float = 1.0
    product: int = 8192
    copy: int = 16384
    budget: float = 170.0
    frames: int | None = None

    @property
    def grid(self) -> tuple[int, int]:
        return self.size[0] // 16, self.size[1] // 16

    @property
    def rules(self) -> Protocol:
        size = "{}x{}".format(*self.size)
        return protocol("paper").with_(size=size, context=self.context, radius=self.radius)


SMOKE = Settings(("tiny/16",), (96, 144), 2, 3, 3, 2, 0.01, product=64, copy=256, frames=4)


def start(settings: Settings, device: torch.device, file: Path, **options: Any) -> Rows:
    """No rows yet."""
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU: the figures say nothing about a GPU"
    head = {
        "device": name, "torch": torch.__version__, "settings": asdict(settings), "protocol": str(settings.rules),
        "rates": {}, "nominal": next((rates for known, rates in NOMINAL.items() if known in name), {}),
    }  # fmt: skip
    return Rows(file, device, settings.budget, settings.seconds, head, **options)


def formats(device: torch.device) -> tuple[str, ...]:
    return ("tf32", "float16") if device.type == "cuda" else ("float32",)


@contextmanager
def computing(kind: str) -> Iterator[None]:
    """Float32 products in TF32 inside, or in float32 for the format of that name."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest" if kind == "float32" else "high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def build(name: str) -> MAEEncoder:
    """A model of the seed 0, on the CPU."""
    width, depth, heads = MODELS[name]
    torch.manual_seed(0)
    return MAEEncoder(224, 16, width, depth, heads).eval()


def measure_rates(run: Rows, settings: Settings) -> None:
    """FLOP/s of matrix products in each format, and bytes/s of a copy (read and written)."""
    side = settings.product
    for kind in formats(run.device):
        dtype = torch.float16 if kind == "float16" else torch.float32
        a, b = (torch.randn(side, side, device=run.device).to(dtype) for _ in range(2))
        with computing(kind):
            run.result["rates"][kind] = 2 * side**3 / run.seconds_of(partial(torch.mm, a, b, out=torch.empty_like(a)))
    source = torch.zeros(settings.copy, settings.copy, device=run.device)
    target = torch.empty_like(source)
    run.result["rates"]["bytes"] = 2 * source.nbytes / run.seconds_of(lambda: target.copy_(source))
    run.write()


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


def measure_host(run: Rows, settings: Settings, picture: Path, mask: Path) -> None:
    """Seconds a frame of what the host does, in one thread."""

    def truth() -> np.ndarray:
        return (read_mask(mask) > 0).astype(np.uint8)

    result = np.roll(truth(), 7, axis=1)
    with tempfile.TemporaryDirectory() as folder:
        works: tuple[Callable[[], Any], ...] = (
            lambda: resize_frame(read_frame(picture), settings.size),
            lambda: region_and_contour(truth(), result, 1),
            lambda: save_mask(Path(folder) / "mask.png", result),
        )
        for stage, work in zip(HOST, works, strict=True):
            if run.has_time(stage):
                run.keep(model=None, stage=stage, format="uint8", batch=1, seconds=run.seconds_of(work))


def measure_model(run: Rows, settings: Settings, name: str) -> None:
    """Seconds a frame of what the device does, and the share of the roofline."""
    device, width = run.device, MODELS[name][0]
    (h, w), rules, frames, M = settings.grid, settings.rules, settings.context + 1, settings.labels
    model = build(name)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (settings.batch, 3, *settings.size), dtype=torch.uint8, generator=generator)
    # as `propagate` keeps them: the long side first
    features = functional.normalize(torch.randn(frames + 1, w, h, width, generator=generator), dim=-1).to(device)
    labels = torch.rand(frames, w, h, M, generator=generator).softmax(-1).to(device)

    def row(stage: str, kind: str, batch: int, work: Callable[[], Any]) -> None:
        if not run.has_time(f"{name}: {stage}, {kind}, batch {batch}"):
            return
        try:
            with computing(kind):
                seconds = run.seconds_of(work) / batch
        except torch.cuda.OutOfMemoryError:
            run.result["left_out"].append(f"{name}: {stage}, {kind}, batch {batch}: out of memory")
            return
        flops, size = needs(settings, name, stage, 2 if kind == "float16" else 4)
        found = {"gflop": flops / 1e9, "megabytes": size / 1e6}
        for share, rate in (
            ("share", run.result["rates"][kind]),
            ("share of nominal", run.result["nominal"].get(kind)),
        ):
            if rate:
                found[share] = max(flops / rate, size / run.result["rates"]["bytes"]) / seconds
        memory = size / run.result["rates"]["bytes"] > flops / run.result["rates"][kind]
        run.keep(
            model=name, stage=stage, format=kind, batch=batch, seconds=seconds, **found,
            bound_by="memory" if memory else "arithmetic",
        )  # fmt: skip

    for kind in formats(device):
        encode = model_source(name, model, device=str(device), half=kind == "float16").encode
        for batch in (1, settings.batch):
            row("features", kind, batch, partial(encode, images[:batch].to(device)))
    exact = formats(device)[0]  # features are kept in float32, whatever the network computes in
    context = Context(features[:-1], labels, near=0, far=1)
    row("affinity, labels", exact, 1, partial(propagate_step, features[-1], context, rules))
    values = np.arange(M, dtype=np.uint8)
    soft = labels[0].transpose(0, 1).contiguous()
    row("read-out", exact, 1, partial(patches_to_mask, soft, values, settings.size, (480, 854), rules))


def measure_whole(run: Rows, settings: Settings, data: Path, name: str) -> None:
    """The sequences of DAVIS from files to J and F, as many as there is time for: fast formats first, float32 last."""
    kinds = dict.fromkeys((*reversed(formats(run.device)), "float32"))
    found = {}
    for year in (2016, 2017):
        davis = Davis(data, year)
        try:
            found[year] = davis, first_frames(davis.videos(), settings.frames)
        except InputError as error:  # as when a list is missing, or the masks are those of the other year
            run.result["left_out"].append(f"DAVIS {year}: {error}")
    for kind, year in itertools.product(kinds, found):
        if run.has_time(f"DAVIS {year}, {kind}", 10 * settings.seconds):
            source = open_source(name, Path(), str(run.device), kind == "float16")
            if isinstance(source, Copy | Oracle):
                raise InputError(f"{name} is a control, which has no features to compute in another format")
            davis, videos = found[year]
            start, scores, frames = run.clock(), {}, 0
            with computing(kind):
                for record in records(davis, videos, source, settings.rules, batch=settings.batch):
                    scores[record["video"]], frames = record["scores"], frames + record["frames"]
                    if run.left < 0:
                        break
            seconds = run.clock() - start
            run.keep(
                data=f"DAVIS {year}", source=source.name, format=kind, sequences=len(scores), of=len(videos),
                frames=frames, seconds=seconds, frames_a_second=frames / seconds,
                points=100 * davis.row(scores)["J&F-Mean"],
                each={video: 100 * davis.value(scores[video]) for video in scores},
            )  # fmt: skip


def synthetic_davis(root: Path, settings: Settings, sequences: int = 3) -> Path:
    """Scenes with moving objects in DAVIS's layout."""
    size, frames = (settings.size, settings.frames) if settings.frames else ((480, 854), 24)
    seconds = frames / 12
    return write_davis(
        [synthetic_video(n, height=size[0], width=size[1], seconds=seconds, fps=12) for n in range(sequences)],
        root,
        "jpg",
    )


def measure(run: Rows, settings: Settings, data: Path | None, source: str) -> dict[str, Any]:
    """All rows."""
    measure_rates(run, settings)
    with tempfile.TemporaryDirectory() as folder:
        if data is None:
            data = synthetic_davis(Path(folder), settings)
            run.result["left_out"].append("the sequences of DAVIS: no --data; synthetic ones in their place")
        pictures, masks = (sorted((data / kind / "480p").glob("*/*.*g")) for kind in ("JPEGImages", "Annotations"))
        if not (pictures and masks):
            raise InputError(f"{data} holds no JPEGImages/480p and Annotations/480p: expected DAVIS's folder")
        measure_host(run, settings, pictures[0], masks[0])
        for model in settings.models:
            if run.has_time(model, 10 * settings.seconds):
                measure_model(run, settings, model)
        measure_whole(run, settings, data, source)
    run.write()
    return run.result


def differences(result: Mapping[str, Any]) -> dict[str, float]:
    """By how many points of J&F a faster format differs from float32, over the sequences that both have."""
    rows = {(row["data"], row["format"]): row["each"] for row in result["rows"] if "data" in row}
    found = {}
    for (data, kind), each in rows.items():
        exact = rows.get((data, "float32"))
        both = each.keys() & exact.keys() if exact and kind != "float32" else ()
        if both and exact:
            found[f"{data}, {kind}"] = abs(sum(each[video] - exact[video] for video in both)) / len(both)
    return found


def table(result: Mapping[str, Any]) -> str:
    """What `measure` found, to read."""
    rates = result["rates"]
    products = ", ".join(f"{kind} {rate / 1e12:.3g} TFLOP/s" for kind, rate in rates.items() if kind != "bytes")
    stated = ", ".join(f"{kind} {rate / 1e12:.0f}" for kind, rate in result["nominal"].items()) or "not known"
    lines = [
        f"{result['device']}, torch {result['torch']}, {result['seconds']:.0f} s in all; {result['protocol']}",
        f"matrix product: {products} (the vendor's: {stated}); copy: {rates['bytes'] / 1e9:.4g} GB/s",
    ]
    for row in result["rows"]:
        if "data" in row:
            lines.append(
                f"{row['data']} from files to J and F, {row['source']}, {row['format']}: "
                f"J&F {row['points'] or math.nan:.2f}, {row['sequences']} of {row['of']} sequences, "
                f"{row['frames']} frames in {row['seconds']:.1f} s: {row['frames_a_second']:.1f} frames/s"
            )
            continue
        line = f"{row['model'] or 'host':<8}{row['stage']:<18}{row['format']:<9}batch {row['batch']:>2}  "
        line += f"{1e3 * row['seconds']:9.3f} ms a frame"
        if "share" in row:
            line += f"  {row['share']:6.1%} of the roofline ({row['bound_by']})"
        if "share of nominal" in row:
            line += f", {row['share of nominal']:.1%} with the vendor's rate"
        lines.append(line)
    for what, points in differences(result).items():
        verdict = "" if points <= MOST_POINTS else ": MISSED"
        lines.append(f"{what} differs from float32 by {points:.3f} point (asked ≤ {MOST_POINTS}{verdict})")
    if result["left_out"]:
        lines.append(f"left out: {'; '.join(result['left_out'])}")
    return "\n".join(lines)


def draw(result: Mapping[str, Any], path: Path) -> None:
    """A bar of the milliseconds of a frame for each model and format, and one of the host's threads beside it."""
    from matplotlib.figure import Figure

    bars: dict[str, dict[str, float]] = {}
    for row in result["rows"]:
        if "stage" in row:  # the larger batch comes last and counts
            name = f"{row['model']}, {row['format']}" if row["model"] else "host, one thread"
            bars.setdefault(name, {})[row["stage"]] = 1e3 * row["seconds"]
    figure = Figure(figsize=(8, 1.2 + 0.5 * len(bars)), layout="constrained")
    axes = figure.subplots()
    left = dict.fromkeys(bars, 0.0)
    for stage in STAGES:
        there = [name for name in bars if stage in bars[name]]
        axes.barh(there, [bars[name][stage] for name in there], left=[left[name] for name in there], label=stage)
        left |= {name: left[name] + bars[name][stage] for name in there}
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds a frame")
    axes.set_title(f"{result['device'].partition(':')[0]}, {result['protocol'].partition(':')[0]}", fontsize=9)
    figure.legend(loc="outside lower center", ncols=3, fontsize=8)
    figure.savefig(path, dpi=120)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="DAVIS's folder, for the part from files to J and F")
    parser.add_argument("--source", default="random", help="features of that part, as for `siammae eval`")
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu_eval.json, .txt and .png")
    parser.add_argument("--seconds", type=float, help=f"for everything; default {Settings().budget:.0f}")
    parser.add_argument("--smoke", action="store_true", help="in small, also on a CPU")
    options = parser.parse_args(arguments)
    if not (options.smoke or torch.cuda.is_available()):
        raise InputError("there is no GPU here; --smoke runs everything in small on the CPU")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    settings = SMOKE if options.smoke else Settings()
    settings = replace(settings, budget=options.seconds or settings.budget)
    result = measure(start(settings, device, options.out / "gpu_eval.json"), settings, options.data, options.source)
    write_text(options.out / "gpu_eval.txt", table(result) + "\n")
    draw(result, options.out / "gpu_eval.png")
    print(table(result))


if __name__ == "__main__":
    main()
