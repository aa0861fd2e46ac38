"""siammae demo [--data VIDEOS]: execute SiamMAE.ipynb and keep it as a page."""

import logging
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

from common.errors import InputError
from common.files import write_atomically

NOTEBOOK = Path(__file__).parents[1] / "SiamMAE.ipynb"


def main(data: Path | None = None, preset: str = "demo", out: Path = Path("runs/demo"), root: Path = Path()) -> None:
    """Execute SiamMAE.ipynb from top to bottom into a page with its figures, and say where everything is.

    Args:
        data: folder of videos; default: the built-in clips
        preset: demo takes minutes on a CPU; see `siammae train --help` for the others
        out: folder for the page
        root: folder that holds losses/, test_losses/ and checkpoints/
    """
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError
    from nbconvert import HTMLExporter

    from dataset_loader import find_videos
    from ml.presets import preset as by_name

    by_name(preset)
    if data is not None and len(find_videos(data)) < 2:
        raise InputError(f"{data} holds one video; the demo needs a second one, to show what a wrong f1 costs")
    if not NOTEBOOK.is_file():
        raise InputError(f"{NOTEBOOK} is not there; run the demo from a clone of the repository")
    before = set(root.glob("losses/*.txt"))
    settings = {"SIAMMAE_PRESET": preset, "SIAMMAE_VIDEOS": str(data.resolve()) if data else ""}
    settings["SIAMMAE_ROOT"] = str(root.resolve())
    os.environ.update(settings)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    began = time.monotonic()

    class Client(NotebookClient):
        """Passes on what the cells print while they run, so that the progress bars are seen."""

        def process_message(self, msg: dict[str, Any], cell: Any, cell_index: int) -> Any:
            if msg["msg_type"] == "stream":
                sys.stderr.write(msg["content"]["text"])
                sys.stderr.flush()
            return super().process_message(msg, cell, cell_index)

    def announce(cell: Any, cell_index: int) -> None:
        if cell.cell_type == "markdown" and cell.source.startswith("#"):
            print(f"[{time.monotonic() - began:4.0f} s] {cell.source.splitlines()[0].lstrip('# ')}", flush=True)

    client = Client(
        notebook, timeout=None, kernel_name="python3", on_cell_start=announce, coalesce_streams=True,
        resources={"metadata": {"path": str(NOTEBOOK.parent)}},
    )  # fmt: skip
    failed = None
    try:
        client.execute()
    except CellExecutionError as error:
        failed = error
    except Exception:
        if hasattr(client, "_async_cleanup_kernel_future"):  # at Ctrl-C nbclient ends the kernel, then misses it
            logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # its unfinished tasks would be reported
            print(f"stopped; finished epochs are kept in {root / 'checkpoints'}", file=sys.stderr)
            raise KeyboardInterrupt from None
        raise
    exporter = HTMLExporter()
    exporter.log.setLevel("ERROR")  # it would ask for alternative texts
    page, _ = exporter.from_notebook_node(notebook)
    page = re.sub(r'<script src="https://[^"]*">\s*</script>', "", page)  # it has no formulas
    write_atomically(out / "SiamMAE.html", lambda file: file.write(page.encode()))
    write_atomically(out / "SiamMAE.ipynb", lambda file: file.write(nbformat.writes(notebook).encode()))
    if failed is not None:
        raise InputError(f"a cell failed, see {out / 'SiamMAE.html'}: {failed.ename}: {failed.evalue}")
    print(f"\nthe page        {(out / 'SiamMAE.html').resolve()}")
    logs = sorted(set(root.glob("losses/*.txt")) - before)
    for log in logs:
        print(f"losses          {log}\ncheckpoints     {root / 'checkpoints' / log.stem}/")
    print(f"took            {time.monotonic() - began:.0f} s")
    if logs:
        print(f"the report      {report(root, [log.stem for log in logs], out / 'report.html').resolve()}")


def report(root: Path, runs: list[str], out: Path) -> Path:
    """The page over these runs, with what their checkpoints make of the pairs of samples.pickle."""
    from ml.report import find, write_report
    from ml.report_pictures import Pictures

    found = find([root], runs)
    samples = NOTEBOOK.with_name("samples.pickle")
    pictures = Pictures(samples if samples.is_file() else None).of(found.runs)
    write_report(out, found, pictures=pictures, title="The runs of the demo")
    return out
