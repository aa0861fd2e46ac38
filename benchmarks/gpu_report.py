"""What `benchmarks.gpu_train` found, to read: a table of its rows, and a bar of where the time goes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def table(content: Mapping[str, Any]) -> str:
    """A line for each row."""
    lines = [f"{content['device']}, torch {content['torch']}", ""]
    lines += [f"{row['what']:<52}{_said(row)}" for row in content["rows"]]
    if content["left_out"]:
        lines += ["", f"left out for lack of time: {'; '.join(content['left_out'])}"]
    return "\n".join(lines)


def _said(row: Mapping[str, Any]) -> str:
    if "failed" in row:
        return row["failed"]
    if "chosen" in row:
        return "; ".join(row["chosen"])
    if "kinds" in row:
        idle = [] if row["idle"] is None else [f"no kernel runs in {row['idle']:.0%} of the time"]
        return ", ".join([f"{kind} {share:.0%}" for kind, share in row["kinds"].items()] + idle)
    words = [f"batch {row['batch']}"] if "batch" in row else []
    words += [f"{row['workers']} processes"] if "workers" in row else []
    words += [f"{row[key]:{form}} {unit}" for key, form, unit in _NUMBERS if row.get(key) is not None]
    words += [f"{row[key]:.1%} {of}" for key, of in _SHARES if row.get(key) is not None]
    if row.get("aim") and row.get("share") is not None:
        words[-1 if row.get("share_of_nominal") is None else -2] += f" (aim {row['aim']:.0%})"
    return ", ".join(words)


_NUMBERS = (
    ("tflops", ".4g", "TFLOP/s"), ("pairs_a_second", ",.1f", "pairs/s"), ("milliseconds", ".2f", "ms a step"),
    ("own_milliseconds", ".2f", "ms of the training thread a batch"), ("memory_gb", ".1f", "GB"),
)  # fmt: skip
_SHARES = (
    ("waiting", "of the time waiting"), ("share", "of the matrix product"), ("share_of_nominal", "of the nominal rate")
)  # fmt: skip


def bars(shares: Mapping[str, Mapping[str, float]], path: Path, title: str) -> None:
    """A bar for each name, divided by kind; written as a picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 1.5 + 0.45 * len(shares)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    names = list(shares)
    kinds = list(dict.fromkeys(kind for row in shares.values() for kind in row))
    left = [0.0] * len(names)
    for number, kind in enumerate(kinds):
        widths = [100 * shares[name].get(kind, 0.0) for name in names]
        axes.barh(names, widths, left=left, label=kind, color=f"C{number % 10}", hatch="//" if number > 9 else None)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set(xlim=(0, 100), xlabel="% of the time of a step", title=title)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    figure.savefig(path, dpi=110)
