"""siammae data download kinetics --videos N --out FOLDER | davis --out FOLDER | --list FILE --out FOLDER"""

from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from common.errors import InputError
from dataset_loader.preparing.download import Split, download_davis, download_kinetics, download_list


def main(
    what: Annotated[Literal["kinetics", "davis", "list"], tyro.conf.Positional] = "list",
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
    """Download Kinetics-400, DAVIS 2017, or what a list of URLs names; the same command goes on after an interruption.

    Nothing that is there already is overwritten or deleted.

    Args:
        what: the data set; with --list it can be left out
        out: folder to put everything into
        videos: kinetics: about how many; parts of 993 videos and 1.5 GB, 242 of train and 20 of val, spread evenly
        splits: kinetics: which of train, val and test; without it, train and val
        list_: file with a URL on each line and, where it shall not keep its name, another one after a blank
        base_url: kinetics, davis: a mirror
        jobs: downloads at the same time
        shard: i/n: only the i-th of n shares, for n machines
        keep_archives: leave the archives beside the folders that were made of them
    """
    given = {"videos": videos, "splits": splits, "base_url": base_url, "list": list_}
    own: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    needed, possible = {
        "kinetics": ("videos", {"videos", "splits", "base_url"}),
        "davis": (None, {"base_url"}),
        "list": ("list", {"list"}),
    }[what]
    if needed and needed not in own:
        raise InputError("name kinetics with --videos N (or all, 400 GB), or davis, or a file of URLs with --list FILE")
    if wrong := own.keys() - possible:
        raise InputError(f"--{min(wrong).replace('_', '-')} does not go with {what}")
    options: dict[str, Any] = dict(out=out, jobs=jobs, shard=shard, keep_archives=keep_archives)
    if what == "kinetics":
        download_kinetics(**own, **options)
    elif what == "davis":
        download_davis(**own, **options)
    else:
        download_list(own["list"], **options)
