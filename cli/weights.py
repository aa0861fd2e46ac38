"""siammae weights [NAME-OR-URL] [--out FOLDER]"""

from pathlib import Path
from typing import Annotated

import tyro

from mae.weights import PUBLIC_WEIGHTS
from ml.SiamMAE import download_pretrained_model


def main(name: Annotated[str, tyro.conf.Positional] = "", out: Path = Path("weights")) -> None:
    """Download public MAE weights (CC BY-NC 4.0), or list what there is.

    Args:
        name: a name from the list, or a URL
        out: folder to put the file into
    """
    if not name:
        for file, url in PUBLIC_WEIGHTS.items():
            print(f"{file:40} {url}")
        return
    print(download_pretrained_model(PUBLIC_WEIGHTS.get(name, name), out))
