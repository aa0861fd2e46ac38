"""The model card of an exported model: what the run itself recorded, and nothing else."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.errors import InputError

_NAMES = {
    "model": "model", "mask_ratio": "mask ratio", "image_size": "image size", "batch_size": "pairs a step",
    "base_lr": "base learning rate", "weight_decay": "weight decay", "min_gap": "least gap (1/30 s)",
    "max_gap": "largest gap (1/30 s)", "repeated_sampling": "pairs of a visit", "seed": "seed",
}  # fmt: skip


def model_card(
    config: Mapping[str, Any],
    record: Mapping[str, Any],
    *,
    use: str,
    library: str,
    licence: str = "other",
    scores: Iterable[str] = (),
) -> str:
    """Markdown with a YAML head.

    config: the model's. record: its checkpoint, or what is known of other weights (`ml.foreign.open_model`). use: lines
    of code that open what was exported. library: the Hub's name of the program that they need. scores: sentences with
    their protocol, such as `read_scores` gives.
    """
    run, settings = record.get("run", "unnamed"), record.get("settings") or {}
    of_run = record.get("run_config") or {}
    kinds = {"MAE-ST": "masked autoencoder of clips (MAE-ST)", "SiamMAE": "siamese masked autoencoder of frame pairs"}
    about = kinds.get(str(config.get("model")), "masked autoencoder of images")
    head = [
        "---", f"license: {licence}", f"library_name: {library}", "pipeline_tag: image-feature-extraction",
        "tags: [siamese-masked-autoencoder, self-supervised, video]", "---", "",
    ]  # fmt: skip
    lines = [
        f"# {run}",
        "",
        f"The weights of a {about}, exported by this workspace. Features per patch, learned without labels.",
        "",
    ]
    lines += ["## Use", "", "```python", *use.strip().splitlines(), "```", "", "## Training", ""]
    rows = {"run": run, "epochs": record.get("epoch"), "steps": record.get("step")}
    rows |= {words: of_run.get(name, settings.get(name)) for name, words in _NAMES.items()}
    rows |= {"data": _data(settings.get("data")), "weights started from": record.get("source")}
    lines += _table({name: value for name, value in rows.items() if value not in (None, "", {})})
    lines += ["", "## Model", "", *_table(_flat(config)), "", "## Scores", ""]
    lines += [f"- {score}" for score in scores] or ["None recorded. A number means something only with its protocol."]
    return "\n".join([*head, *lines]) + "\n"


def read_scores(results: Sequence[Path], log: Path | None = None) -> list[str]:
    """Sentences from folders of `siammae eval` (results.json), and from what was scored during the training."""
    found = []
    for folder in results:
        path = folder / "results.json" if folder.is_dir() else folder
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            row, source, protocol = content["row"], content["source"], content["protocol"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} holds no results of siammae eval ({error!r}): name its --out folder") from error
        numbers = ", ".join(f"{name} {100 * value:.1f}" for name, value in row.items() if isinstance(value, float))
        found.append(f"{content.get('in_words', '')}: {numbers} (source {source}; protocol {_short(protocol)})")
    if log is not None and log.is_file():
        from ml.logs import read_steps

        epochs = [line for line in read_steps(log) if "epoch_loss" in line]
        known = {"step", "epoch", "epoch_loss", "loss", "lr"}
        values = {k: v for line in epochs for k, v in line.items() if k not in known and isinstance(v, float)}
        found += [f"{name} {value:.4g}, during the training, at its last time" for name, value in values.items()]
    return found


def _data(data: Any) -> str:
    """What a loader said about its videos."""
    return (
        ", ".join(f"{name} {value}" for name, value in data.items()) if isinstance(data, Mapping) else str(data or "")
    )


def _short(protocol: Any) -> str:
    if not isinstance(protocol, Mapping):
        return str(protocol)
    return ", ".join(f"{name} {value}" for name, value in protocol.items() if value not in (None, False))


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    inner = config.get("mae")
    return {**(inner if isinstance(inner, Mapping) else {}), **{k: v for k, v in config.items() if k != "mae"}}


def _table(rows: Mapping[str, Any]) -> list[str]:
    return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]
