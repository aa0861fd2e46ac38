"""A page over runs: a table with what differs in their configurations, curves, reconstructions over epochs, scores.

Everything on it is read from what the runs left behind: `losses/`, `test_losses/`, `checkpoints/<run>/`, and the
`results.json` of evaluations. Nothing of a run is written or changed.
"""

import json
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

from common.errors import InputError
from common.files import read_text
from ml.foreign_logs import EVENTS, Curve, curves_of_lines, read_log
from ml.logs import read_losses, read_steps
from pages.page import data_uri, write_page

POINTS = 60_000  # over all runs: what a page holds of their steps' numbers
MOST_POINTS = 1500  # of a run: more than a screen has columns
FIGURES = 3 * 2**20  # bytes of the pictures that runs drew themselves
_PASSED_OVER = {"node_modules", "site-packages", "__pycache__", "dataset", "before_rewind"}
_CONFIG_LEFT_OUT = {"workers", "save_minutes", "num_epochs_per_save", "names"}


@dataclass(frozen=True)
class RunFiles:
    """A run by its name and the folder that holds its losses/, test_losses/ and checkpoints/."""

    name: str
    root: Path

    @property
    def folder(self) -> Path:
        return self.root / "checkpoints" / self.name

    @property
    def losses(self) -> Path:
        return self.root / "losses" / f"{self.name}.txt"

    @property
    def steps(self) -> Path:
        return self.losses.with_suffix(".jsonl")

    @property
    def test_losses(self) -> Path:
        return self.root / "test_losses" / f"{self.name}.txt"

    def checkpoints(self) -> dict[int, Path]:
        """The kept ones by their epoch."""
        found = {int(path.stem): path for path in self.folder.glob("*.pt") if path.stem.isdecimal()}
        return dict(sorted(found.items()))

    def figures(self) -> dict[int, Path]:
        """What the run drew of its first pair, by epoch."""
        found = {int(path.stem): path for path in self.folder.glob("*.png") if path.stem.isdecimal()}
        return dict(sorted(found.items()))


@dataclass
class Found:
    """What lies below the paths that were named."""

    runs: list[RunFiles] = field(default_factory=list)
    evaluations: list[Path] = field(default_factory=list)
    logs: list[Path] = field(default_factory=list)

    def state(self) -> dict[str, tuple[float, int]]:
        """Time and size of every file that the page depends on: it is out of date where this differs."""
        files = [*self.evaluations, *(file for log in self.logs for file in (log.iterdir() if log.is_dir() else [log]))]
        for run in self.runs:
            files += [run.losses, run.steps, run.test_losses, run.folder / "config.json", run.folder / "starts.jsonl"]
            files += [*run.checkpoints().values(), *run.figures().values()]
        state = {}
        for path in files:
            try:
                stat = path.stat()
            except OSError:
                continue
            state[str(path)] = (stat.st_mtime, stat.st_size)
        return state


def find(paths: Iterable[str | Path], names: Sequence[str] = ()) -> Found:
    """Runs, evaluations and other people's logs: below folders, and by name.

    A folder is searched for `losses/`, `checkpoints/<run>/config.json`, `results.json` and TensorBoard's event files; a
    file is a log of any kind that `read_log` knows. names: these runs alone. Raises InputError for a path that does not
    exist, a name that no run has, and where there is nothing at all.
    """
    found, places = Found(), [Path(path) for path in paths]
    for path in places:
        if path.is_file():
            found.logs.append(path)
        elif path.is_dir():
            _search(path, found)
        else:
            raise InputError(f"{path} does not exist; name a folder that holds losses/, or a log")
    if names:
        known = {run.name for run in found.runs}
        missing = [name for name in names if name not in known]
        if missing:
            raise InputError(f"there is no run {missing[0]!r}; there are {', '.join(sorted(known)) or 'none'}")
        found.runs = [run for run in found.runs if run.name in names]
    if not (found.runs or found.logs or found.evaluations):
        where = ", ".join(map(str, places))
        raise InputError(f"no run lies below {where}: expected losses/<run>.txt or checkpoints/<run>/config.json")
    return found


def _search(top: Path, found: Found) -> None:
    events = []
    for here, folders, files in os.walk(top):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in _PASSED_OVER)
        place = Path(here)
        names: set[str] = set()
        if "losses" in folders:
            names |= {path.stem for path in (place / "losses").iterdir() if path.suffix in (".txt", ".jsonl")}
        if "checkpoints" in folders:
            names |= {path.parent.name for path in (place / "checkpoints").glob("*/config.json")}
        found.runs += [RunFiles(name, place) for name in sorted(names)]
        if "results.json" in files:
            found.evaluations.append(place / "results.json")
        if any(name.startswith(EVENTS) for name in files):
            events.append(place)
    own = {run.root / "losses" / "tensorboard" / run.name for run in found.runs}
    found.logs += [place for place in events if place not in own]


def write_report(
    out: str | Path,
    found: Found,
    *,
    pictures: dict[str, Any] | None = None,
    title: str = "Training runs",
    refresh: float = 0,
) -> int:
    """Write the page over what was found, and return its size in bytes.

    pictures: reconstructions of the same pairs (`ml.report_pictures`). refresh: seconds after which an open page loads
    itself again; 0 never.
    """
    notes: list[str] = []
    points = max(100, min(MOST_POINTS, POINTS // max(1, len(found.runs) + len(found.logs))))
    runs = [run for files in found.runs if (run := _run(files, points, notes))]
    for path in found.logs:
        try:
            logs = read_log(path)
        except InputError as error:
            notes.append(str(error))
            continue
        runs += [
            dict(name=name, place=str(path), foreign=True, curves=[_packed(curve, points) for curve in curves],
                 facts={"last loss": _last(curves)}, config={})
            for name, curves in logs.items()
        ]  # fmt: skip
    differing, common = _configurations(runs)
    folder = Path(out).resolve().parent
    rows = [row for path in found.evaluations if (row := _evaluation(path, folder, runs, notes))]
    data = dict(
        title=title, written=time.strftime("%Y-%m-%d %H:%M:%S"), refresh=refresh, runs=runs, differing=differing,
        common=common, evaluations=rows, pictures=pictures, figures=_figures(found.runs, notes), notes=notes,
    )  # fmt: skip
    return write_page(out, "report", title, data)


def _run(files: RunFiles, points: int, notes: list[str]) -> dict[str, Any] | None:
    """What the page says of a run; None where nothing of it can be read, which is then noted."""
    config = _json(files.folder / "config.json") or {}
    settings = config.get("train") or {}
    try:
        lines = read_losses(files.losses) if files.losses.is_file() else []
        tests = read_losses(files.test_losses) if files.test_losses.is_file() else []
    except InputError as error:
        notes.append(str(error))
        return None
    records = read_steps(files.steps) if files.steps.is_file() else []
    steps = [record for record in records if "epoch_loss" not in record]
    ends = [record for record in records if "epoch_loss" in record]
    per_epoch = settings.get("steps_per_epoch") or (max((len(line.losses) for line in lines), default=0))
    curves = _step_curves(steps, per_epoch) if steps else curves_of_lines(files.losses) if lines else []
    known = [line for line in tests if line.epoch is not None]
    if known:
        curves.append(_by_epoch("validation loss", [(line.epoch or 0, line.mean) for line in known], per_epoch))
    for name in dict.fromkeys(key for end in ends for key in end):
        if name not in ("step", "epoch", "epoch_loss", "validation_loss"):
            values = [(end["epoch"], _number(end[name])) for end in ends if name in end]
            curves.append(_by_epoch(name, values, per_epoch))
    if not curves and not config:
        notes.append(f"{files.losses} is empty")
        return None
    return dict(
        name=files.name, place=str(files.root), foreign=False, curves=[_packed(curve, points) for curve in curves],
        per_epoch=per_epoch, batch=settings.get("batch_size"), facts=_facts(files, settings, lines, known, steps),
        config=_flat(config), starts=_starts(files.folder / "starts.jsonl"),
    )  # fmt: skip


def _facts(files: RunFiles, settings: dict[str, Any], lines: list, tests: list, steps: list) -> dict[str, Any]:
    """The cells of the table, by column; a column that a run has no value for is left out."""
    epochs, total, batch = len(lines), settings.get("epochs"), settings.get("batch_size", 0)
    timed = [
        (batch / speed, _number(step.get("waiting", 0)))
        for step in steps
        if (speed := _number(step.get("pairs_per_second"))) > 0
    ]
    seconds = sum(spent for spent, _ in timed)
    waited = sum(spent * share for spent, share in timed)
    memory = [step["memory_mib"] for step in steps if isinstance(step.get("memory_mib"), int)]
    best = min(tests, key=lambda line: line.mean) if tests else None
    facts: dict[str, Any] = {
        "epochs": f"{epochs} of {total}" if total else epochs,
        "steps": steps[-1]["step"] if steps else sum(len(line.losses) for line in lines),
        "last loss": lines[-1].mean if lines else (_number(steps[-1].get("loss")) if steps else None),
        "best validation": best.mean if best else None,
        "at epoch": best.epoch if best else None,
        "minutes": seconds / 60 or None,
        "pairs/s": batch * len(timed) / seconds if seconds else None,
        "waiting": f"{waited / seconds:.0%}" if seconds else None,
        "memory (MiB)": max(memory, default=None),
        "left out": sum(1 for step in steps if step.get("skipped")) or None,
        "checkpoints": ", ".join(map(str, files.checkpoints())) or None,
    }  # fmt: skip
    return {name: value for name, value in facts.items() if value is not None}


def _step_curves(steps: list[dict[str, Any]], per_epoch: int) -> list[Curve]:
    """What `losses/<run>.jsonl` says of each step, a curve a quantity."""
    names = {
        "loss": "loss", "lr": "learning rate", "grad_norm": "gradient norm", "pairs_per_second": "pairs per second",
        "waiting": "waiting for data", "memory_mib": "memory (MiB)",
    }  # fmt: skip
    at = [float(step["step"]) for step in steps]
    epochs = [step / per_epoch for step in at] if per_epoch else None
    return [
        Curve(metric, [_number(step.get(key)) for step in steps], at, epochs)
        for key, metric in names.items()
        if any(key in step for step in steps)
    ]


def _by_epoch(metric: str, values: list[tuple[int, float]], per_epoch: int) -> Curve:
    steps = [float(epoch * per_epoch) for epoch, _ in values] if per_epoch else None
    return Curve(metric, [value for _, value in values], steps, [float(epoch) for epoch, _ in values])


def _packed(curve: Curve, points: int) -> dict[str, Any]:
    """A curve with at most so many points: each the mean of its neighbours, with the least and the largest of them.

    Numbers keep five digits. Values that are no number are left out of a mean, and are null where all are.
    """
    size = -(-len(curve.values) // points)
    groups = [curve.values[k : k + size] for k in range(0, len(curve.values), size)]
    finite = [[value for value in group if value - value == 0] for group in groups]
    packed: dict[str, Any] = dict(metric=curve.metric, every=size)
    packed["y"] = [_short(sum(group) / len(group)) if group else None for group in finite]
    if size > 1:
        packed["low"] = [_short(min(group)) if group else None for group in finite]
        packed["high"] = [_short(max(group)) if group else None for group in finite]
    for name, places in (("step", curve.steps), ("epoch", curve.epochs)):
        if places is not None:
            last = [places[min(k + size, len(places)) - 1] for k in range(0, len(places), size)]
            packed[name] = [int(place) if place == int(place) else round(place, 4) for place in last]
    return packed


def _configurations(runs: list[dict[str, Any]]) -> tuple[list[str], dict[str, Any]]:
    """The keys in which runs differ, in order, and what all that have a configuration have in common."""
    configured = [run["config"] for run in runs if run["config"]]
    keys = list(dict.fromkeys(key for config in configured for key in config))
    differing, common = [], {}
    for key in keys:
        values = {json.dumps(config.get(key)) for config in configured}
        if len(values) == 1:
            common[key] = configured[0][key]
        else:
            differing.append(key)
    return differing, common


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    """The sections of a config.json as one level: the run's own words first, of the others what these do not say."""
    flat: dict[str, Any] = {}

    def add(values: dict[str, Any]) -> None:
        for key, value in values.items():
            if isinstance(value, dict):
                add(value)
            elif key not in flat and key not in _CONFIG_LEFT_OUT:
                flat[key] = value

    sections = [config.get(name) for name in ("run", "model", "train")]
    for section in [*sections, *(value for key, value in config.items() if key not in ("run", "model", "train"))]:
        if isinstance(section, dict):
            add(section)
    return flat


def _evaluation(path: Path, folder: Path, runs: list[dict[str, Any]], notes: list[str]) -> dict[str, Any] | None:
    """A row for the results of an evaluation, with the way to its page from the report's folder."""
    content = _json(path)
    if content is None or not isinstance(content.get("row"), dict):
        notes.append(f"{path} holds no results of an evaluation")
        return None
    source = content.get("source") or {}
    source = source.get("name", "") if isinstance(source, dict) else str(source)
    benchmark = content.get("benchmark") or {}
    page = path.with_name("index.html")
    target = page if page.is_file() else path
    return dict(
        source=source, benchmark=benchmark.get("kind", "") if isinstance(benchmark, dict) else str(benchmark),
        row=content["row"], how=content.get("in_words") or json.dumps(content.get("protocol")),
        videos=len(content.get("videos") or []), seconds=content.get("seconds"),
        memory=(content.get("peak_memory") or {}).get("process"), commit=content.get("commit"),
        link=Path(os.path.relpath(target.resolve(), folder)).as_posix(), folder=str(path.parent),
        run=next((run["name"] for run in runs if run["name"] in source.split("/")), None),
    )  # fmt: skip


def _figures(runs: list[RunFiles], notes: list[str]) -> dict[str, list[dict[str, Any]]]:
    """The pictures that runs drew of their first pair, as JPEGs; fewer epochs where these weigh much."""
    from PIL import Image

    found: dict[str, list[dict[str, Any]]] = {}
    left = FIGURES / max(1, len(runs))
    for run in runs:
        entries: list[dict[str, Any]] = []
        figures = list(run.figures().items())
        for epoch, path in figures:
            try:
                with Image.open(path) as picture:
                    content = BytesIO()
                    picture.convert("RGB").save(content, "JPEG", quality=80)
            except OSError:
                continue  # being written, or damaged
            entries.append(dict(epoch=epoch, image=data_uri(content.getvalue())))
        kept = spread(entries, max(2, int(left / max((len(e["image"]) for e in entries), default=1))))
        if len(kept) < len(entries):
            notes.append(f"{run.name}: {len(kept)} of {len(entries)} figures are shown, to keep the page small")
        if kept:
            found[run.name] = kept
    return found


def spread(things: Sequence[Any], count: int) -> list[Any]:
    """At most so many of a sequence, evenly, its first and last among them."""
    if len(things) <= count:
        return list(things)
    return [things[round(k * (len(things) - 1) / (count - 1))] for k in range(count)] if count > 1 else [things[-1]]


def _starts(path: Path) -> list[dict[str, Any]]:
    """How a run was started, each time: command, commit, versions, machine, as `pages.surroundings` notes it."""
    if not path.is_file():
        return []
    starts = []
    for line in read_text(path).splitlines():
        try:
            starts.append(json.loads(line))
        except ValueError:
            continue
    return [start for start in starts if isinstance(start, dict)]


def _json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(read_text(path))
    except (InputError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _last(curves: list[Curve]) -> float | None:
    return next((curve.values[-1] for curve in curves if curve.metric in ("loss", "mean loss of an epoch")), None)


def _number(value: Any) -> float:
    """Logs write what JSON does not know (nan, inf) as strings."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return float("nan")


def _short(value: float) -> float:
    return float(f"{value:.5g}")
