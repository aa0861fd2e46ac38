"""siammae report [FOLDER | LOG …] [--out REPORT.html] [--watch]"""

from pathlib import Path
from typing import Annotated

import tyro


def main(
    paths: Annotated[tuple[Path, ...], tyro.conf.Positional] = (Path(),),
    out: Path = Path("report.html"),
    runs: tuple[str, ...] = (),
    samples: Path | None = Path("samples.pickle"),
    title: str = "Training runs",
    watch: bool = False,
    every: float = 10.0,
) -> None:
    """Write one page over all runs below folders: table, curves, reconstructions over epochs, evaluations, origins.

    The page is one file that opens from the disk without a network. It is rewritten each time.

    Args:
        paths: folders that hold losses/ and checkpoints/, at any depth; and other people's logs, to stand beside: text
            lists of losses, JSON lines, CSV exports of Weights & Biases, TensorBoard's events
        out: the page
        runs: these runs alone, by name
        samples: pairs that each kept checkpoint predicts (`siammae samples`); None: the figures that the runs drew
        title: the page's heading
        watch: rewrite the page whenever a run advances, until Ctrl-C; an open page follows
        every: seconds between two looks at the runs
    """
    import time

    from common.errors import InputError
    from ml.report import find, write_report
    from ml.report_pictures import Pictures

    if out.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"{out} is not the name of a page; expected one that ends in .html")
    if not every > 0:
        raise InputError(f"every is {every}; expected a number of seconds, more than 0")
    pictures = Pictures(samples if samples and (samples.is_file() or samples != Path("samples.pickle")) else None)
    known = None
    try:
        while True:
            found = find(paths, runs)
            state = found.state()
            if state != known:
                size = write_report(
                    out, found, pictures=pictures.of(found.runs), title=title, refresh=every if watch else 0
                )
                known = state
                counted = f"{len(found.runs)} runs, {len(found.evaluations)} evaluations, {len(found.logs)} other logs"
                print(f"{out}: {counted}, {size / 2**20:.1f} MB", flush=True)
            if not watch:
                return
            time.sleep(every)
    finally:
        if watch and known:  # the page that stays does not load itself again
            found = find(paths, runs)
            write_report(out, found, pictures=pictures.of(found.runs), title=title)
