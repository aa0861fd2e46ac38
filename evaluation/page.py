"""A page over all videos of a run, worst first: it needs nothing but the pictures beside it and opens from the disk."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from common.files import write_text
from evaluation.pictures import ADDED, MISSED, SWAPPED

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1760px; padding: 0 1rem; color: #222; }
h2 { margin: 2.5rem 0 .5rem; font-size: 1.1rem; } h2 b { float: right; font-variant-numeric: tabular-nums; }
img, video { max-width: 100%; display: block; margin: .4rem 0; }
pre { background: #f4f4f4; padding: .8rem; white-space: pre-wrap; }
i { display: inline-block; width: .8em; height: .8em; margin: 0 .3em 0 1em; border: 1px solid #888; }
"""


def write_page(
    folder: Path,
    about: Sequence[str],
    entries: Sequence[tuple[str, float, int]],
    *,
    measure: str,
    joints: bool = False,
    notes: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Write `<folder>/index.html` over entries (video, its score, its frames), with `pictures/<video>.png` and `.mp4`.

    about: paragraphs that stand above: what was measured how. measure: what the score is. Videos without one (NaN)
    come last. notes: what must be said beside the score of a video, by its name.
    """
    ordered = sorted(entries, key=lambda entry: (math.isnan(entry[1]), entry[1], entry[0]))
    scored = any(not math.isnan(value) for _, value, _ in entries)
    rows = "rows: truth, prediction, where they differ" if scored else "the prediction"
    colours = ((MISSED, "truth only"), (ADDED, "prediction only"), (SWAPPED, "another label"))
    legend = "".join(f'<i style="background: rgb{colour}"></i>{name}' for colour, name in colours)
    if joints:
        legend = " (rings: true joints, with a line to where they were found)"
    body = "\n".join(
        _section(folder, name, value, frames, measure, (notes or {}).get(name, ())) for name, value, frames in ordered
    )
    several = f"{len(entries)} videos" + f", the worst {measure} first" * scored
    title = several if len(entries) > 1 else entries[0][0]
    html = (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        f"<style>{STYLE}</style>\n<h1>{escape(title)}</h1>\n"
        + "\n".join(f"<pre>{escape(line)}</pre>" for line in about if line)
        + f"\n<p>{rows}{legend if scored else ''}</p>\n{body}\n</html>\n"
    )
    write_text(folder / "index.html", html)


def _section(folder: Path, name: str, value: float, frames: int, measure: str, notes: Sequence[str]) -> str:
    """A video's heading, strip and, where there is one, video."""
    source = escape(quote(f"pictures/{name}"))
    score = "" if math.isnan(value) else f"<b>{escape(measure)} {100 * value:.1f}</b>"
    said = "".join(f"<p>{escape(note)}</p>\n" for note in notes)
    shown = f'<h2>{score}{escape(name)}, {frames} frames</h2>\n{said}<img src="{source}.png" alt="{escape(name)}">'
    if (folder / "pictures" / f"{name}.mp4").is_file():
        shown += f'\n<video src="{source}.mp4" controls preload="metadata"></video>'
    return shown
