"""siammae data prepare frames|packed|gop FOLDER --out FOLDER"""

from pathlib import Path
from typing import Annotated, Literal

import tyro

from common.errors import InputError
from dataset_loader.preparing.recipe import SILENCE, USED, Form, Recipe


def main(
    form: Annotated[Form, tyro.conf.Positional],
    folder: Annotated[Path, tyro.conf.Positional],
    *,
    out: Path,
    fps: float | None = None,
    short_side: int | Literal["own"] | None = None,
    quality: int | None = None,
    gop: int | None = None,
    crf: int | None = None,
    videos_per_shard: int | None = None,
    jobs: int | None = None,
    shard: str = "1/1",
    split: Literal["train", "test", "all"] | None = None,
    every_file: bool = False,
    time_limit: float = SILENCE,
) -> None:
    """Write the videos of a folder in another form; what it will take is measured and printed first.

    The same command goes on after an interruption. Videos are those that are ok in the manifest of `siammae data
    validate`, if there is one beside the folder.

    Args:
        form: frames: a folder of JPEGs for each video; packed: shards of JPEGs, the fastest to read; gop: H.264 with a
            keyframe every few frames
        folder: folder of videos
        out: folder for the result
        fps: frames a second, the nearest in time of the video's own; without it all of them
        short_side: pixels; nothing is enlarged; without it 256, own keeps the size
        quality: frames, packed: of the JPEGs, to 100; without it 90
        gop: gop: frames from one keyframe to the next; without it 4
        crf: gop: constant quality, less is better; without it 18
        videos_per_shard: packed: without it 256
        jobs: processes; without it one for each core
        shard: i/n: only the i-th of n shares, for n machines
        split: only the videos of this side, as `siammae data split` has written it, or all; needed where there are both
        every_file: do not look at the manifest
        time_limit: seconds without a frame after which a video is given up
    """
    from dataset_loader.preparing.prepare import prepare

    given = dict(fps=fps, quality=quality, gop=gop, crf=crf, videos_per_shard=videos_per_shard, short_side=short_side)
    own = {name: None if value == "own" else value for name, value in given.items() if value is not None}
    if wrong := own.keys() - USED[form]:
        raise InputError(f"--{min(wrong).replace('_', '-')} does not go with {form}")
    recipe = Recipe(form, **own)  # type: ignore[arg-type]
    prepare(folder, out, recipe, jobs=jobs, shard=shard, split=split, every_file=every_file, silence=time_limit)
