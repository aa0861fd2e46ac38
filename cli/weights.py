"""siammae weights [NAME-OR-URL] [--out FOLDER] | siammae weights inspect FILE"""

from pathlib import Path
from typing import Annotated

import tyro

from common.errors import InputError


def main(
    name: Annotated[str, tyro.conf.Positional] = "",
    file: Annotated[str, tyro.conf.Positional] = "",
    out: Path = Path("weights"),
) -> None:
    """List published weights, download one of them, or inspect a file of any origin.

    Args:
        name: a name from the list, or a URL; or the word inspect
        file: after inspect: a file or folder of weights, whose kind, sizes, settings and uses are printed; options
            may follow after commas, as in FILE,num_heads=6,kind=dino
        out: folder to put a downloaded file into
    """
    if name == "inspect":
        if not file:
            raise InputError("inspect wants a file: siammae weights inspect FILE")
        from mae.formats.report import report

        for heading, words in report(file):
            print(f"{heading:14} {words}")
        return
    if file:
        raise InputError(f"{file!r} is one word too many: siammae weights NAME, or siammae weights inspect FILE")
    if name:
        _download(name, out)
        return
    _list()


def _list() -> None:
    from mae.public import PUBLIC

    for row in PUBLIC:
        print(f"{row.name:36} {row.family}: {row.model}; {row.licence}")
        if row.scores:
            scores = ", ".join(f"{benchmark} {score}" for benchmark, score in row.scores.items())
            print(f"{'':36} published: {scores}; protocol {row.protocol} [{row.cited}]")
        print(f"{'':36} {row.how}")


def _download(name: str, out: Path) -> None:
    from mae.public import PUBLIC, published
    from mae.weights import download_pretrained_model

    row = published(name)
    if row is not None and not row.direct:
        raise InputError(f"{name} is fetched {row.how}; then give the file to --source or --weights")
    if row is None and "://" not in name:
        there = ", ".join(other.name for other in PUBLIC if other.direct)
        raise InputError(f"{name!r} is no URL, and there are no public weights of that name; there are {there}")
    print(download_pretrained_model(row.where if row else name, out))
