"""The report of a study: what was asked, how, what came out, and what it does not say. Every number in it is read from
the runs' scores."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from ml.study import ARMS, BASE, MEASURES, Spread, gather, number, verdict

Table = Mapping[str, Mapping[str, Spread]]

# What the paper found, each as (claim, the arm that it finds better, the other, where it stands there).
ORDERS = (
    ("95 % hidden before 75 %", BASE, "mask 75 %", "ablation of the mask ratio"),
    ("75 % hidden before 50 %", "mask 75 %", "mask 50 %", "ablation of the mask ratio"),
    ("cross-self before cross attention", BASE, "cross", "ablation of the decoder"),
    ("cross before joint attention", "cross", "joint decoder", "ablation of the decoder"),
    ("siamese before joint encoder", BASE, "joint encoder", "ablation of the encoder"),
    ("two frames before one (MAE)", BASE, "MAE", "comparison with MAE"),
    ("video before crops of one frame", BASE, "crops", "data augmentation against frame pairs"),
)
PANELS = ("error 75", "shift", "J&F")


PAGE = """# What each choice is worth, in small

Written by `siammae study` from the scores of its runs; nothing in it is typed by hand.

## Question

A siamese masked autoencoder has many choices: how much of f2 is hidden, which decoder, which pairs of frames. Which of
them matter in a model that trains in minutes on one core, and do the paper's orders show there?

## Method

One choice is changed at a time. The base is the paper's recipe in small: {model} at {image_size} pixels,
{hidden} % hidden, cross-self decoder, pairs of video with gaps of {min_gap} to {max_gap} thirtieths of a second,
{batch_size} pairs in a step, {steps} steps. Each run starts from the shipped image MAE, unless the table says
otherwise, and sees the same videos. {count} of {planned} runs (seeds {seeds}), {hours:.1f} core-hours with scoring.

All runs are asked the same, whatever they were trained for. *Error*: on hidden patches of pairs of held-out videos,
pixels normalised in each patch; gaps are short up to 26 thirtieths of a second. *Shift*: the same where f2 is f1's
frame, its window 8 pixels further, with 75 % hidden; *hits*: how often the decoder's last layer looks at exactly the
right patch of f1, with f2 visible. *J&F*: DAVIS-2016's sequences, first 10 frames, short side 240, protocol dino, of
features as they are. *δ_avg*: points of the synthetic world. Mean ± standard deviation over seeds (n − 1).

## Results

{table}

{trivial}

![error, shift and J&F of every arm, one dot a run]({figure})

## The paper's orders

Judged by J&F, as the paper does. An order counts as seen, or as reversed, only where no seed of one arm reaches into
the other's.

{orders}

## Against the base

{against}

## Limits

Models of 2 million parameters, minutes of training, {videos} short videos, one start: an order that shows here need not
show at full size, and one that does not may. So few seeds (*n* in the table) tell apart what differs by more than their
spread and nothing finer. The J&F is of few frames, so its level is higher than that of whole sequences. A model with a
second frame cannot be asked about shifts; an image MAE does not look into f1.
"""


def report(study: Mapping[str, Any], figure: str) -> str:
    """The page in Markdown. study: what `siammae study` keeps of its runs; figure: the name of its file."""
    runs = study["runs"]
    table = gather(runs)
    base = [run for run in runs if run["arm"] == BASE] or runs
    missing = [arm for arm in ARMS if arm not in table]
    page = PAGE.format(
        **base[0]["config"],
        hidden=round(100 * base[0]["config"]["mask_ratio"]),
        steps=" or ".join(f"{n:,}" for n in sorted({run["steps"] for run in base})),
        seeds=", ".join(map(str, sorted({run["seed"] for run in runs}))),
        count=len(runs),
        planned=study["planned"],
        hours=study["hours"],
        videos=study["videos"],
        table=_table(table) + _other_steps(runs, base),
        trivial=_trivial(base[0]["scores"]),
        figure=figure,
        orders=_orders(table),
        against=_against_base(table),
    )
    if missing:
        page += f"\nNot run, for lack of time: {', '.join(missing)}. The same command runs them.\n"
    return page


def _table(table: Table) -> str:
    shown = [name for name in MEASURES if any(name in row for row in table.values())]
    lines = [f"| | n | {' | '.join(MEASURES[name].heading for name in shown)} |", "|---" * (len(shown) + 2) + "|"]
    for arm, row in table.items():
        cells = [row[name].text(MEASURES[name].decimals) if name in row else "–" for name in shown]
        lines.append(
            f"| {arm} *({ARMS[arm].question})* | {max(len(s.values) for s in row.values())} | {' | '.join(cells)} |"
        )
    return "\n".join(lines)


def _other_steps(runs: Sequence[Mapping[str, Any]], base: Sequence[Mapping[str, Any]]) -> str:
    """Which trained arms took other numbers of steps than the base, in a sentence."""
    usual = {run["steps"] for run in base}
    other = {run["arm"]: run["steps"] for run in runs if ARMS[run["arm"]].trained and run["steps"] not in usual}
    said = ", ".join(f"{arm} {steps:,}" for arm, steps in other.items())
    return f"\n\nOther numbers of steps: {said}." if said else ""


def _trivial(scores: Mapping[str, Any]) -> str:
    """The errors of answers that know nothing, which are the same for all runs of two frames."""
    said = []
    for ratio in ("0.75", "0.95"):
        row = scores["video"][ratio]["all"]
        found = [f"{name} {row[name]:.3f}" for name in ("copy", "copy × factor", "mean") if name in row]
        said.append(f"{100 * float(ratio):.0f} % hidden: {', '.join(found)}")
    for name, row in scores.get("motion", {}).items():
        found = [f"{what} {row[what]:.3f}" for what in ("copy", "copy × factor", "mean") if what in row]
        said.append(f"{name} px: {', '.join(found)}")
    return (
        f"Trivial answers, for comparison: {'; '.join(said)} (f1's patch copied; that times its best factor; each "
        "patch's own mean, which nobody can know)."
    )


def _orders(table: Table) -> str:
    lines = ["| the paper | better | other | here |", "|---|---|---|---|"]
    measure, words = MEASURES["J&F"], {"yes": "seen", "no": "**reversed**"}
    for claim, better, worse, where in ORDERS:
        first, second = (table.get(arm, {}).get("J&F") for arm in (better, worse))
        texts = [each.text(measure.decimals) if each else "–" for each in (first, second)]
        found = verdict(first, second, measure) if first and second else "not run"
        here = words.get(found, found)
        lines.append(f"| {claim} ({where}) | {texts[0]} | {texts[1]} | {here} |")
    return "\n".join(lines)


def _against_base(table: Table) -> str:
    lines = []
    for name in ("J&F", "error 75", "shift", "d_avg"):
        base = table.get(BASE, {}).get(name)
        found: dict[str, list[str]] = {"yes": [], "no": []}
        for arm, row in table.items():
            if base and name in row and arm != BASE and ARMS[arm].trained:
                found.setdefault(verdict(row[name], base, MEASURES[name]), []).append(arm)
        if base:
            better, worse = (", ".join(found[k]) or "none" for k in ("yes", "no"))
            lines.append(
                f"- {MEASURES[name].heading}: told apart from the base as better: {better}; as worse: {worse}."
            )
    return "\n".join(lines)


def study_figure(runs: Sequence[Mapping[str, Any]]) -> Figure:
    """One row an arm, one dot a run; the band is the base's range, the dashed line what copying with a factor gives."""
    arms = [arm for arm in ARMS if any(run["arm"] == arm for run in runs)]
    figure = Figure(figsize=(10, 1.4 + 0.28 * len(arms)), layout="constrained")
    axes = figure.subplots(1, len(PANELS), sharey=True, squeeze=False)[0]
    for axis, name in zip(axes, PANELS, strict=True):
        measure = MEASURES[name]
        for place, arm in enumerate(arms):
            values = [x for r in runs if r["arm"] == arm and (x := number(r["scores"], measure)) is not None]
            colour = "C3" if arm == BASE else "C0" if ARMS[arm].trained else "0.5"
            axis.plot(values, [place] * len(values), "o", color=colour, alpha=0.7, markersize=5)
            if arm == BASE and values:
                axis.axvspan(min(values), max(values), color=colour, alpha=0.12, linewidth=0)
        base = next((r["scores"] for r in runs if r["arm"] == BASE), None)
        if name == "error 75" and base:
            axis.axvline(base["video"]["0.75"]["all"]["copy × factor"], color="0.4", linestyle="--", linewidth=0.9)
            axis.set_xlim(right=1.05)
        better = "right" if measure.more_is_better else "left"
        axis.set_title(f"{measure.heading} (better: {better})", fontsize=10)
        axis.grid(alpha=0.25)
    axes[0].set_yticks(range(len(arms)), arms, fontsize=8)
    axes[0].invert_yaxis()
    return figure
