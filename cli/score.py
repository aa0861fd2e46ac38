"""siammae score BENCHMARK RESULTS --data DATA"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from cli.flags import subcommands
from evaluation.benchmark import Benchmark
from evaluation.benchmarks import BENCHMARKS

if TYPE_CHECKING:
    Chosen = Benchmark
else:
    Chosen = subcommands({name: kind for name, kind in BENCHMARKS.items() if name != "folder"})  # it has no truth


@tyro.conf.configure(tyro.conf.CascadeSubcommandArgs)
def main(
    benchmark: Annotated[Chosen, tyro.conf.arg(name="")],
    results: Annotated[Path, tyro.conf.Positional],
    out: Path | None = None,
    sequences: tuple[str, ...] = (),
) -> None:
    """Score the results of any method as the official tools do; print the papers' table.

    Args:
        results: what the method found, as `siammae eval --export` writes it: <sequence>/<frame>.png, indexed
            PNGs (DAVIS, YouTube-VOS, UVO, VIP, CamVid), classes 0 to 123 (VSPW), class and instance in colours
            (KITTI-STEP); <sequence>.json for joints and points
        out: folder, new, for results.json and the CSV files of the official tool
        sequences: only these videos
    """
    from evaluation.run import score_results

    score_results(benchmark, results, out, names=sequences, report=lambda line: print(line, flush=True))
