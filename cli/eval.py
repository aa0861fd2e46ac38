"""siammae eval BENCHMARK --data DATA --out DIR [--source NAME] [--protocol dino] …"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import tyro

from cli.flags import Features, subcommands
from evaluation.benchmark import Benchmark
from evaluation.benchmarks import BENCHMARKS
from evaluation.benchmarks.folder import Folder
from evaluation.protocols import Overrides
from evaluation.videos import Decode


@dataclass(frozen=True)
class OwnVideo(Folder):
    __doc__ = Folder.__doc__

    def decoder(self) -> tuple[int, Decode]:
        """A video file is decoded frame by frame whenever it is gone through."""
        from dataset_loader.decoding import DecodeError, Video

        with Video(self.data) as clip:
            count = len(clip.index.times)

        def decode(numbers: Sequence[int]) -> Iterator[np.ndarray]:
            with Video(self.data) as clip:
                for number, (image, _) in enumerate(clip.each_frame()):
                    if number in numbers:
                        yield image
                    if number == numbers[-1]:
                        return
            reason = f"gives fewer frames than the {count} that it states: get it again, or re-encode it"
            raise DecodeError(self.data, reason)

        return count, decode


if TYPE_CHECKING:
    Chosen = Benchmark
else:
    Chosen = subcommands({**BENCHMARKS, "folder": OwnVideo})


@tyro.conf.configure(tyro.conf.CascadeSubcommandArgs)
def main(
    benchmark: Annotated[Chosen, tyro.conf.arg(name="")],
    out: Path,
    features: Annotated[Features, tyro.conf.arg(name="")] = Features(),  # noqa: B008
    protocol: Literal["paper", "rsp", "dino", "dinov3"] = "paper",
    sequences: tuple[str, ...] = (),
    frames: int | None = None,
    export: Path | None = None,
    videos: bool = False,
    expect: str | None = None,
    rules: Annotated[Overrides, tyro.conf.arg(name="")] = {},  # noqa: B006
) -> None:
    """Follow the labels of a benchmark with a source of features; print the papers' table, and keep it in a folder.

    Flags of the protocol that are given override it; the numbers then say so. Repeat an interrupted call to go on.

    Args:
        out: folder of the results, new or of the same run: JSON, CSV, and pictures
        protocol: where the defaults of the flags --size to --min-max come from
        sequences: only these videos
        frames: only the first so many frames of each video
        export: folder, new or of the same run, for the results as indexed PNGs, which the official tool reads (joints:
            JSON)
        videos: write a strip and an mp4 of each video, and index.html over all of them, worst first
        expect: a name of `siammae weights`, whose published number is printed beside ours, each with its protocol
    """
    from evaluation.run import evaluate

    beside = published_number(expect, benchmark) if expect else None
    result = evaluate(
        benchmark,
        features.open(),
        benchmark.protocol(protocol, **rules),
        out,
        names=sequences,
        frames=frames,
        batch=features.at_once,
        export=export,
        write_video=write_mp4 if videos else None,
        settings=dict(device=features.where.partition(":")[0], half=features.half)
        | ({"tf32": True} if features.on_cuda else {}),
        report=lambda line: print(line, flush=True),
    )
    if beside:
        name, ours = next(iter(result.row.items()))
        print(f"{name} {100 * ours:.1f} here (protocol {protocol}{', changed' if rules else ''}); {beside}")


def published_number(name: str, benchmark: Benchmark) -> str:
    """What others report of a published model on a benchmark, in words; an InputError if they report nothing."""
    from common.errors import InputError
    from mae.public import PUBLIC, published

    row, of = published(name), next(n for n, kind in BENCHMARKS.items() if isinstance(benchmark, kind))
    if row is None or of not in row.scores:
        known = ", ".join(other.name for other in PUBLIC if of in other.scores)
        raise InputError(f"no number of {name} on {of} is known; there are {known or 'none on this benchmark'}")
    return f"{row.scores[of]:.1f} published for {row.family}, {row.model} (protocol {row.protocol}) [{row.cited}]"


def write_mp4(path: Path, frames: Iterable[Any], rate: float) -> None:
    """The encoder is only loaded where videos are wanted."""
    from dataset_loader.preparing.encoding import write_video

    write_video(path, frames, rate)
