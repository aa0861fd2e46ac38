"""siammae data split SOURCE [--test FOLDER]"""

from pathlib import Path
from typing import Annotated

import tyro

from dataset_loader.preparing.splitting import split_data


def main(
    source: Annotated[Path, tyro.conf.Positional],
    *,
    test: Path | None = None,
    test_share: float | None = None,
    leave_out_duplicates: bool = False,
    lists: Path | None = None,
) -> None:
    """Divide the videos that are ok into training and test, by a hash of their ids, in the list that validate wrote.

    A video stays on its side whatever other files come or go. Files of equal content on both sides are refused.

    Args:
        source: folder of videos, or its manifest
        test: another folder, or its manifest, that is the test set; then the first is all training
        test_share: share of the videos that are for test; without it 0.1
        leave_out_duplicates: of files of equal content use only the first, on neither side the others
        lists: folder for train.txt and test.txt, the paths of the videos, one a line; --data takes such a list
    """
    split_data(source, test=test, test_share=test_share, leave_out_duplicates=leave_out_duplicates, lists=lists)
