"""siammae weights [NAME-OR-URL] [--out FOLDER]"""

from pathlib import Path
from typing import Annotated

import tyro

from common.errors import InputError
from mae.weights import PUBLIC_WEIGHTS, PUBLIC_WEIGHTS_ST
from ml.SiamMAE import download_pretrained_model


def main(name: Annotated[str, tyro.conf.Positional] = "", out: Path = Path("weights")) -> None:
    """Download public MAE or MAE-ST weights (CC BY-NC 4.0), or list what there is.

    Args:
        name: a name from the list, or a URL
        out: folder to put the file into
    """
    public = PUBLIC_WEIGHTS | PUBLIC_WEIGHTS_ST
    if not name:
        for file, url in public.items():
            print(f"{file:40} {url}")
        return
    if name not in public and "://" not in name:
        raise InputError(
            f"{name!r} is no URL, and there are no public weights of that name; there are {', '.join(public)}"
        )
    print(download_pretrained_model(public.get(name, name), out))
