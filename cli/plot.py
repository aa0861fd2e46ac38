"""siammae plot CHECKPOINT [--samples FILE] --out FIGURE.png"""

from pathlib import Path
from typing import Annotated

import tyro

from mae.files import InputError
from ml.checkpoints import find_checkpoint, load_model
from ml.figures import save_figure
from ml.reconstruction import Statistics
from ml.utils import best_device, samples_figure


def main(
    checkpoint: Annotated[str, tyro.conf.Positional],
    out: Path,
    samples: Path = Path("samples.pickle"),
    root: Path = Path(),
    device: str | None = None,
    statistics: Statistics = "past",
) -> None:
    """Draw what a checkpoint makes of a few pairs: f1, f2, what is visible of f2, and the prediction.

    Args:
        checkpoint: a run, <run>/<epoch>, or a file
        out: the PNG to write
        samples: frame pairs, from `siammae samples`
        root: folder that holds checkpoints/
        device: cuda, mps, cpu; default: the best there is
        statistics: whose mean and spread turn normalised predictions into colours: f1's (past), or the hidden patch's
            own (target), which gives a part of the answer away
    """
    if out.exists():
        raise InputError(f"{out} exists already and is not overwritten; name another file or move it away")
    path = find_checkpoint(checkpoint, root)
    model, saved = load_model(path, best_device(device))
    heading = f"{saved.get('run', path.stem)}, epoch {saved['epoch']}: {model.mask_ratio:.0%} of f2 hidden"
    save_figure(samples_figure(model, samples, heading=heading, statistics=statistics), out)
    print(out)
