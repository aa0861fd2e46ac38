"""siammae compare LOSSES.txt … --out FIGURE.png"""

from pathlib import Path
from typing import Annotated

import tyro

from common.errors import InputError


def main(logs: Annotated[tuple[Path, ...], tyro.conf.Positional], out: Path = Path("losses.png")) -> None:
    """Draw the loss curves of several runs in one figure, and print where each began and ended.

    Args:
        logs: loss files, of this workspace or of the public replications
        out: the PNG to write
    """
    from ml.logs import read_losses
    from ml.plots import loss_figure, save_figure

    if not logs:
        raise InputError("name at least one loss file, such as losses/*.txt")
    if out.exists():
        raise InputError(f"{out} exists already and is not overwritten; name another file or move it away")
    names = [path.stem for path in logs]
    runs = {str(p) if names.count(p.stem) > 1 else p.stem: read_losses(p) for p in logs}
    width = max(map(len, runs))
    for name, lines in runs.items():
        if lines:
            print(f"{name:{width}}  {len(lines):4} epochs, loss {lines[0].mean:.4f} → {lines[-1].mean:.4f}")
        else:
            print(f"{name:{width}}  is empty")
    save_figure(loss_figure(runs), out)
    print(out)
