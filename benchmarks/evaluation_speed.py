"""`python -m benchmarks.evaluation_speed`: evaluation against the plain way, in CPU seconds on one core, in ratios.

DINO's protocol at 480×832. Features: ViT-S/16. Affinity and labels: a full context of 7, random features (the time does
not depend on them). J and F: PNG files of a synthetic sequence with three objects. End to end (`--data`): the pictures
of a real sequence to masks in files and J and F. That both ways agree is checked before the clock runs, and no figure
is printed if they do not. Repeats are paired; a ratio is the median over the repeats, with its interval.

Legend: F context frames, h w patch grid, N = h·w, D width, M labels, k the protocol's top_k.
"""

import argparse
import itertools
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from benchmarks import plain_evaluation as plain
from benchmarks.plain_evaluation import median_and_interval
from common.files import write_text
from evaluation.benchmarks.davis import Davis
from evaluation.features import Source, model_source
from evaluation.metrics import region_and_contour
from evaluation.propagation import Context, propagate, propagate_step
from evaluation.protocols import Protocol, protocol
from evaluation.run import evaluate, score_results
from evaluation.videos import Video, read_mask
from mae.models_mae import MAEEncoder

DEMANDS = {
    "features of a frame": 1.8,
    "affinity and labels of a frame": 5.0,
    "end to end": 2.0,
    "J and F from PNG files": 5.0,
}
PIXELS, POINTS = 1e-5, 0.01  # end to end: the share of pixels that may differ, and the points of J&F


@dataclass(frozen=True)
class Settings:
    """size: of the input, (height, width). frames: of the end-to-end sequence, None for all.

    video: frames over which the one neighbourhood mask of a video is spread (DAVIS 2017's validation videos have 67).
    """

    size: tuple[int, int] = (480, 832)
    width: int = 384
    depth: int = 12
    radius: int = 12
    context: int = 7
    repeats: int = 7
    whole_repeats: int = 3
    scored: int = 20
    sequence: str = "car-shadow"
    frames: int | None = None
    video: int = 67

    @property
    def grid(self) -> tuple[int, int]:
        return self.size[0] // 16, self.size[1] // 16

    @property
    def rules(self) -> Protocol:
        rules = protocol("dino", radius=self.radius, context=self.context)
        return rules if rules.input_size(480, 854) == self.size else rules.with_(size="{}x{}".format(*self.size))

    def model(self) -> MAEEncoder:
        torch.manual_seed(0)
        return MAEEncoder(224, 16, self.width, self.depth, num_heads=6).eval()


SMOKE = Settings((96, 144), 48, 2, radius=2, context=3, repeats=2, whole_repeats=1, scored=4, frames=5)


def in_turn(ways: tuple[Callable[[], Any], ...], repeats: int, warm: bool = True) -> list[list[float]]:
    """CPU seconds of each way in each repeat, [ways][repeats]; each second repeat begins with the last way."""
    for way in ways if warm else ():
        way()
    seconds: list[list[float]] = [[] for _ in ways]
    for repeat in range(repeats):
        for index in range(len(ways))[:: -1 if repeat % 2 else 1]:
            start = time.process_time()
            ways[index]()
            seconds[index].append(time.process_time() - start)
    return seconds


def row(seconds: list[list[float]], extra: float = 0.0) -> dict[str, float]:
    """Both medians and the ratio of the pairs; `extra` seconds are added to each of the plain ones."""
    slow, fast = [second + extra for second in seconds[0]], seconds[1]
    ratio, low, high = median_and_interval([a / b for a, b in zip(slow, fast, strict=True)])
    names = "plain", "here", "ratio", "low", "high"
    return dict(zip(names, (median_and_interval(slow)[0], median_and_interval(fast)[0], ratio, low, high), strict=True))


def features(settings: Settings) -> dict[str, Any]:
    """One frame through the network; both features must agree within 1e-4."""
    model = settings.model()
    images = torch.randint(
        0, 256, (1, 3, *settings.size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    with torch.no_grad():
        ways = (lambda: plain.explicit_encode(model, images)), (lambda: model.encode(images))
        difference = (ways[0]() - ways[1]()).abs().max().item()
        _agree("features", difference, 1e-4)
        return {"rows": {"features of a frame": row(in_turn(ways, settings.repeats))}, "features differ": difference}


def affinity(settings: Settings) -> dict[str, Any]:
    """Each repeat follows one more frame with a full context, from identical features."""
    h, w = settings.grid
    generator = torch.Generator().manual_seed(0)
    start = time.process_time()
    mask = plain.neighbourhood(h, w, settings.radius)
    mask_seconds = time.process_time() - start
    count = settings.context + settings.repeats + 3  # all different: a frame that comes twice would make ties
    frames = torch.randn(count, h, w, settings.width, generator=generator)
    labels = torch.rand(h, w, 3, generator=generator).softmax(-1)
    result = compare_weights(frames[: settings.context + 2], mask, settings.rules)
    runs: list[Iterator[Tensor]] = [
        plain.dino_video(frames, labels, mask, settings.context),
        propagate(frames, labels, settings.rules),
    ]
    for run in runs:
        for _ in range(settings.context):
            next(run)
    seconds = in_turn(((lambda: next(runs[0])), (lambda: next(runs[1]))), settings.repeats)
    rows = {
        "affinity and labels of a frame": row(seconds),
        f"the same, with the mask of a video of {settings.video} frames": row(
            seconds, extra=mask_seconds / settings.video
        ),
    }
    return {"rows": rows, "seconds for the mask": mask_seconds, **result}


def compare_weights(frames: Tensor, mask: Tensor, rules: Protocol, chunk: int = 1000) -> dict[str, Any]:
    """The weights that both ways give the sources of the last of the frames [1 + F, h, w, D]; they must agree.

    The labels are one-hot, so that what is propagated *is* the weights, all F·N of them, a chunk at a time. Where the
    k-th and the next similarity are closer than 1e-6, rounding chooses; such targets are counted and left out.
    """
    normal = functional.normalize(frames, dim=-1)
    *_, h, w, _ = frames.shape
    sources, target = normal[:-1], normal[-1]
    exact = functional.normalize(frames.double(), dim=-1).flatten(1, 2)
    similarity = torch.einsum("nd,fsd->nfs", exact[-1], exact[:-1]).masked_fill(mask[:, None] == 0, -torch.inf)
    best = similarity.flatten(1).topk(rules.top_k + 1).values
    decided = ~(best[:, -2] - best[:, -1] < 1e-6).unflatten(0, (h, w))  # NaN: there are not even k
    difference, total = 0.0, len(sources) * h * w
    for begin in range(0, total, chunk):
        size = min(chunk, total - begin)
        labels = torch.zeros(total, size)
        labels[begin : begin + size] = torch.eye(size)
        labels = labels.view(len(sources), h, w, size)
        ours = propagate_step(target, Context(sources, labels, near=1, far=0), rules)
        theirs = plain.dino_step(target, list(sources), list(labels), mask, rules.top_k, rules.temperature)
        difference = max(difference, torch.where(decided[..., None], ours - theirs, 0).abs().max().item())
    _agree("weights", difference, 1e-6)
    return {"weights differ": difference, "undecided targets": int((~decided).sum()), "targets": h * w}


def whole(settings: Settings, data: Path) -> dict[str, Any]:
    """A real sequence: its JPEG files to masks in PNG files, J and F."""
    benchmark = Davis(data, 2016)
    (video,) = benchmark.videos([settings.sequence])
    rules, model = settings.rules, settings.model()
    source = model_source("untrained", model)
    truths = data / "Annotations" / "480p" / video.name
    with tempfile.TemporaryDirectory() as name:
        folders = (Path(name) / str(number) for number in itertools.count())
        seconds, found = _whole_in_turn(settings, benchmark, video, truths, source, model, rules, folders)
    pixels = np.mean([np.mean(a != b) for a, b in zip(*(masks for masks, _ in found), strict=True)])
    points = 100 * abs(found[0][1] - found[1][1])
    _agree("share of pixels", float(pixels), PIXELS)
    _agree("points of J&F", points, POINTS)
    return {
        "rows": {"end to end": row(seconds)}, "pixels differ": float(pixels), "J&F differs": points,
        "J&F": 100 * found[1][1], "frames": len(found[0][0]),
    }  # fmt: skip


def _whole_in_turn(
    settings: Settings, benchmark: Davis, video: Video, truths: Path, source: Source, model: MAEEncoder,
    rules: Protocol, folders: Iterable[Path],
) -> tuple[list[list[float]], list[tuple[np.ndarray, float]]]:  # fmt: skip
    """CPU seconds of the plain way and ours, and of each the masks [T, H, W] and J&F."""
    found: list[Any] = [None, None]
    paths = video.paths[: settings.frames]
    size = rules.input_size(video.first.shape[0], video.first.shape[1])
    folder = iter(folders)

    def plainly() -> None:
        out = next(folder)
        first = truths / f"{paths[0].stem}.png"
        plain.follow_files(paths, first, lambda x: plain.explicit_encode(model, x), size, out, radius=settings.radius)
        j, f = plain.score_folders(truths, out, len(paths), binary=True)
        found[0] = out, float((j.mean() + f.mean()) / 2)

    def here() -> None:
        out, export = next(folder), next(folder)
        options: dict[str, Any] = dict(names=[video.name], frames=settings.frames, export=export, report=_silent)
        result = evaluate(benchmark, source, rules, out, **options)
        found[1] = export / video.name, result.row["J&F-Mean"]

    # a first, unmeasured round would take as long as a measured one, and there is nothing that it would warm
    seconds = in_turn((plainly, here), settings.whole_repeats, warm=False)
    return seconds, [(plain.read_masks(out), score) for out, score in found]


def _silent(_: str) -> None:
    pass


def metrics(settings: Settings) -> dict[str, Any]:
    """J and F of a synthetic sequence from its PNG files, also by `siammae score`; every value must be equal."""
    count = settings.scored
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        pictures, truths = (root / kind / "480p" / "blobs" for kind in ("JPEGImages", "Annotations"))
        results = root / "results" / "blobs"
        for folder, suffix, seed in ((pictures, "jpg", 0), (truths, "png", 0), (results, "png", 1)):
            folder.mkdir(parents=True)
            for t in range(count):
                Image.fromarray(objects(t, seed)).save(folder / f"{t:05d}.{suffix}")
        write_text(root / "ImageSets" / "2017" / "val.txt", "blobs")

        def ours() -> np.ndarray:
            pairs = [(read_mask(truths / f"{t:05d}.png"), read_mask(results / f"{t:05d}.png")) for t in range(count)]
            number = int(pairs[0][0].max())
            return np.stack([region_and_contour(*pair, number) for pair in pairs[1:-1]], axis=-1)

        expected, found = np.stack(plain.score_folders(truths, results)), ours()
        _agree("J and F", float(np.abs(expected - found).max()), 0.0)
        score = partial(score_results, Davis(root), results.parent, report=_silent)
        _agree("J&F", abs(score().row["J&F-Mean"] - expected.mean((1, 2)).mean()), 1e-12)
        ways = (lambda: plain.score_folders(truths, results)), ours, score
        plainly, *here = in_turn(ways, settings.repeats)
    rows = zip(("J and F from PNG files", "the same, by `siammae score`"), here, strict=True)
    return {"rows": {name: row([plainly, seconds]) for name, seconds in rows}, "values of J and F": found.size}


def objects(t: int, seed: int) -> np.ndarray:
    """Three wobbling blobs at time t; another seed shifts them a little."""
    y, x = np.mgrid[:480, :854]
    labels = np.zeros((480, 854), np.uint8)
    for label, (row, column, radius) in enumerate(((150, 200, 90), (300, 500, 120), (200, 700, 60)), start=1):
        angle = np.arctan2(y - row, x - column - 3 * t)
        edge = radius * (1 + 0.2 * np.sin(5 * angle + t + label)) + 6 * seed
        labels[np.hypot(y - row, x - column - 3 * t) < edge] = label
    return labels


def _agree(what: str, difference: float, allowed: float) -> None:
    if not difference <= allowed:
        raise AssertionError(f"the two ways' {what} differ by {difference:.3g}; allowed is {allowed:g}")


def measure(settings: Settings, data: Path | None) -> dict[str, Any]:
    """Everything, ready for JSON."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    result: dict[str, Any] = {"settings": asdict(settings), "machine": platform.processor(), "torch": torch.__version__}
    parts = [features(settings), affinity(settings)]
    if data is None:
        result["left_out"] = "end to end: no real sequence; give DAVIS's folder with --data"
    elif not data.is_dir():
        result["left_out"] = f"end to end: {data} does not exist"
    else:
        parts.append(whole(settings, data))
    parts.append(metrics(settings))
    result["rows"] = {name: values for part in parts for name, values in part.pop("rows").items()}
    result["agreement"] = {name: value for part in parts for name, value in part.items()}
    for name in DEMANDS.keys() & result["rows"].keys():
        result["rows"][name]["at_least"] = DEMANDS[name]
    return {**result, "load": os.getloadavg()[0]}


def table(result: dict[str, Any]) -> str:
    """What `measure` found, to read."""
    size = "×".join(map(str, result["settings"]["size"]))
    lines = [
        f"{size}, width {result['settings']['width']}, one thread, CPU seconds, torch {result['torch']}; load of the "
        f"machine at the end {result['load']:.1f}",
        f"{'':<58}{'plain':>9}{'here':>9}   times faster",
    ]
    for name, values in result["rows"].items():
        wanted = ""
        if "at_least" in values:
            wanted = f"   asked ≥ {values['at_least']}" + ("" if values["ratio"] >= values["at_least"] else ": MISSED")
        lines.append(
            f"{name:<58}{values['plain']:9.3f}{values['here']:9.3f}   {values['ratio']:.2f} "
            f"({values['low']:.2f} … {values['high']:.2f}){wanted}"
        )
    lines.append("agreement: " + ", ".join(f"{name} {value:.4g}" for name, value in result["agreement"].items()))
    return "\n".join([*lines, f"left out: {result['left_out']}"] if "left_out" in result else lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="DAVIS's folder, for the part from end to end")
    parser.add_argument("--sequence", help="of DAVIS 2016's list, in place of car-shadow")
    parser.add_argument("--frames", type=int, help="only the first so many of the sequence")
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--whole-repeats", type=int, help="from end to end; each takes minutes")
    parser.add_argument("--smoke", action="store_true", help="in small, in seconds; says nothing about speed")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    options = parser.parse_args(arguments)
    names = ("sequence", "frames", "repeats", "whole_repeats")
    chosen = {name: getattr(options, name) for name in names if getattr(options, name)}
    result = measure(replace(SMOKE if options.smoke else Settings(), **chosen), options.data)
    print(table(result))
    if options.out:
        options.out.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
