"""siammae data validate FOLDER"""

from pathlib import Path
from typing import Annotated

import tyro

from dataset_loader.preparing.manifest import Rules
from dataset_loader.processes import SILENCE


def main(
    folder: Annotated[Path, tyro.conf.Positional],
    *,
    out: Path | None = None,
    rules: Annotated[Rules, tyro.conf.arg(name="")] = Rules(),  # noqa: B008
    jobs: int | None = None,
    shard: str = "1/1",
    quarantine: Path | None = None,
    again: bool = False,
    time_limit: float = SILENCE,
) -> None:
    """Decode all videos of a folder, list them with what is wrong, and say which are used; continues after a kill.

    Nothing is written into the folder, and nothing is moved unless --quarantine says where to.

    Args:
        folder: folder of videos
        out: the list, a CSV file; without it FOLDER.manifest.csv beside the folder
        jobs: processes; without it one for each core
        shard: i/n: only the i-th of n shares, for n machines; a later run without it takes over what they found
        quarantine: folder on the same disk to which all files that are not ok are moved, under their names
        again: decode also what is known from an earlier run
        time_limit: seconds without a frame after which a file is given up
    """
    from dataset_loader.preparing.validate import validate

    validate(
        folder, out=out, rules=rules, jobs=jobs, shard=shard, quarantine=quarantine, again=again, silence=time_limit
    )
