"""SiamMAE.ipynb runs from top to bottom into a page; that it is thin, `test_notebooks` says."""

import argparse
import re
import subprocess
from pathlib import Path

import pytest
import torch

from cli.main import main
from mae.models_mae import MaskedAutoencoderViT

ROOT = Path(__file__).parents[1]


@pytest.mark.filterwarnings("ignore")  # of Jupyter's own packages, about each other
def test_it_runs_from_top_to_bottom(clips, tmp_path, monkeypatch):
    """As for the full size, in small: from a file in the public MAE's layout that lies in weights/."""
    sizes = dict(img_size=64, patch_size=8, embed_dim=64, depth=2, num_heads=4)
    decoder = dict(decoder_embed_dim=64, decoder_depth=1, decoder_num_heads=4)
    mae = MaskedAutoencoderViT(**sizes, **decoder, norm_pix_loss=False)
    (tmp_path / "weights").mkdir()
    named = {"model": mae.state_dict(), "args": argparse.Namespace(**sizes, **decoder)}
    torch.save(named, tmp_path / "weights" / "mae_visualize_vit_base.pth")
    preset = "mae_base_75_smoke"
    status = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, cwd=ROOT).stdout
    for name in ("PRESET", "ROOT", "VIDEOS"):
        monkeypatch.setenv(f"SIAMMAE_{name}", "")  # the command sets them
    monkeypatch.chdir(ROOT)
    words = ["demo", "--preset", preset, "--data", clips, "--out", tmp_path / "page", "--root", tmp_path]
    assert main([str(word) for word in words]) == 0
    page = (tmp_path / "page" / "SiamMAE.html").read_text()
    assert 'src="http' not in page  # it opens without a network
    assert page.count("data:image/png;base64,") >= 12 and "wrong f1" in page and "Traceback" not in page
    (difference,) = re.findall(r"by hand and by evaluation.propagation: largest difference (\d\S*)", page)
    assert float(difference) < 1e-5
    assert "weights/mae_visualize_vit_base.pth" in page
    assert len(list((tmp_path / "losses").glob(f"{preset}_mask*.txt"))) == 3
    assert len(list((tmp_path / "test_losses").glob("*.txt"))) == 1
    after = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, cwd=ROOT).stdout
    assert after == status
