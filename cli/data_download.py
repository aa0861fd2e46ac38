"""siammae data download kinetics --videos N --out FOLDER | davis --out FOLDER | --list FILE --out FOLDER"""

from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from common.errors import InputError
from dataset_loader.preparing.download import Split, download_archive, download_kinetics, download_list

What = Literal[
    "kinetics", "davis", "vip", "jhmdb", "kitti_step",
    "tapvid_davis", "tapvid_rgb_stacking", "tapvid_kinetics", "robotap", "list",
]  # fmt: skip


def main(
    what: Annotated[What, tyro.conf.Positional] = "list",
    *,
    out: Path,
    videos: int | Literal["all"] | None = None,
    splits: tuple[Split, ...] | None = None,
    list_: Annotated[Path | None, tyro.conf.arg(name="list")] = None,
    base_url: str | None = None,
    jobs: int = 4,
    shard: str = "1/1",
    keep_archives: bool = False,
) -> None:
    """Download a public data set, or what a list of URLs names; the same command goes on after an interruption.

    Nothing that is there already is overwritten or deleted.

    Args:
        what: the data set (kitti_step: its panoptic maps, without KITTI's pictures); with --list it can be left out
        out: folder to put everything into
        videos: kinetics: about how many; parts of 993 videos and 1.5 GB, 242 of train and 20 of val, spread evenly
        splits: kinetics: which of train, val and test; without it, train and val
        list_: file with a URL on each line and, where it shall not keep its name, another one after a blank
        base_url: a mirror, for all but --list
        jobs: downloads at the same time
        shard: i/n: only the i-th of n shares, for n machines
        keep_archives: leave the archives beside the folders that were made of them
    """
    given = {"videos": videos, "splits": splits, "base_url": base_url, "list": list_}
    own: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    needed, possible = {
        "kinetics": ("videos", {"videos", "splits", "base_url"}),
        "list": ("list", {"list"}),
    }.get(what, (None, {"base_url"}))
    if needed and needed not in own:
        raise InputError("name kinetics with --videos N (or all, 400 GB), or davis, or a file of URLs with --list FILE")
    if wrong := own.keys() - possible:
        raise InputError(f"--{min(wrong).replace('_', '-')} does not go with {what}")
    options: dict[str, Any] = dict(out=out, jobs=jobs, shard=shard, keep_archives=keep_archives)
    if what == "kinetics":
        download_kinetics(**own, **options)
    elif what == "list":
        download_list(own["list"], **options)
    else:
        download_archive(what, **own, **options)
