"""A contact sheet shows the frames of a data set, each pair in its row."""

import numpy as np
import pytest
import torch
from PIL import Image

from common.errors import InputError
from dataset_loader.contact_sheet import contact_sheet


class Pairs:
    """A data set of plain coloured pairs, as far as a contact sheet looks at it."""

    def __len__(self):
        return 41

    def __getitem__(self, k):
        video = torch.full((2, 3, 32, 32), k, dtype=torch.uint8)
        video[1] += 100
        return {"video": video, "time": torch.tensor([k, k + 0.5]), "path": f"x/clip {k} ü€.mp4"}


def test_a_contact_sheet_shows_the_frames(tmp_path):
    contact_sheet(Pairs(), tmp_path / "sheet.png", count=5)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape[0] == 5 * 40 + 8
    for row, k in enumerate((0, 10, 20, 30, 40)):
        top = 8 + 40 * row
        assert (sheet[top : top + 32, 8:40] == k).all() and (sheet[top : top + 32, 48:80] == k + 100).all()
        assert (sheet[top : top + 32, 88:] < 128).any()  # words
    with pytest.raises(InputError, match="not overwritten"):
        contact_sheet(Pairs(), tmp_path / "sheet.png")
    with pytest.raises(InputError, match="0 pairs"):
        contact_sheet(Pairs(), tmp_path / "other.png", count=0)
