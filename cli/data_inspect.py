"""siammae data inspect FOLDER --out PICTURE"""

from pathlib import Path
from typing import Annotated, Literal

import tyro


def main(
    folder: Annotated[Path, tyro.conf.Positional],
    *,
    out: Path,
    count: int = 8,
    size: int = 224,
    augment: bool = False,
    seed: int = 0,
    fps: float = 30,
    template: str | None = None,
    second: Literal["none", "past", "later"] = "none",
) -> None:
    """Draw frame pairs of a data set, each with its gap in time, into one picture.

    Args:
        folder: the data set
        out: PNG file to write
        count: pairs
        size: side of a frame in pixels
        augment: crop and flip as in training; without it the central square
        seed: another one gives other pairs
        fps: rate of pictures without times
        template: which pictures of a folder that holds several kinds, such as "img_{:05d}.jpg"
        second: a second frame to look into between f1 and f2, as in a training with this flag
    """
    from dataset_loader.contact_sheet import contact_sheet
    from dataset_loader.dataset import get_kinetics_dataset

    contact_sheet(
        get_kinetics_dataset(
            folder, image_size=size, augment=augment, seed=seed, fps=fps, template=template, second=second
        ),
        out,
        count=count,
    )
    print(f"{out}, {out.stat().st_size / 1e6:.1f} MB")
