"""`siammae settle` and the source `settled:FILE`, on a tiny model; and a sentence for each thing that cannot settle."""

import pytest
import torch

from cli.feature_sources import open_source
from cli.main import main
from common.errors import InputError
from ml.checkpoints import save_checkpoint
from ml.extensions.settle import load_head
from ml.SiamMAE import build_model


@pytest.fixture
def checkpoint(tmp_path):
    def save(name: str, seed: int) -> str:
        torch.manual_seed(seed)
        mae = dict(img_size=32, patch_size=8, embed_dim=16, depth=1, num_heads=2)
        model = build_model(dict(model="SiamMAE", mae=mae, mask_ratio=0.9, decoder_size=[16, 1, 2]))
        path = tmp_path / name
        save_checkpoint(path, dict(model=model.state_dict(), config=model.config, epoch=1, step=7, run="tiny"))
        return str(path)

    return save


def test_from_a_checkpoint_to_a_source(checkpoint, clips, tmp_path, capsys):
    path, head = checkpoint("1.pt", 0), tmp_path / "heads" / "head.pt"
    options = ["--data", str(clips), "--steps", "3", "--batch-size", "8"]
    assert main(["settle", path, "--out", str(head), *options]) == 0
    assert f"settled:{head}" in capsys.readouterr().out
    settled, plain = (open_source(name, tmp_path, "cpu", False) for name in (f"settled:{head}", path))
    images = torch.randint(0, 256, (2, 3, 48, 32), dtype=torch.uint8)
    features = settled.encode(images)
    assert features.shape == (2, 6, 4, 16)
    assert not features.requires_grad
    assert torch.equal(features, load_head(head)[0](plain.encode(images)).detach())
    assert settled.patch_size == 8
    assert settled.weights != plain.weights

    again = tmp_path / "again.pt"
    assert main(["settle", path, "--out", str(again), *options]) == 0
    assert settled.weights == open_source(f"settled:{again}", tmp_path, "cpu", False).weights  # the same bytes

    moved, other = checkpoint("moved.pt", 0), checkpoint("other.pt", 1)
    (tmp_path / "1.pt").unlink()
    assert torch.equal(open_source(f"settled:{head}@{moved}", tmp_path, "cpu", False).encode(images), features)
    with pytest.raises(InputError, match="with other weights"):
        open_source(f"settled:{head}@{other}", tmp_path, "cpu", False)
    with pytest.raises(InputError, match="no checkpoint"):
        open_source(f"settled:{head}", tmp_path, "cpu", False)


def test_what_cannot_settle_is_said(checkpoint, clips, tmp_path, capsys):
    for source, sentence in (("pixels", "pixels is no network"), ("copy", "copy is no network"), ("nobody", "nobody")):
        assert main(["settle", source, "--data", str(clips), "--out", str(tmp_path / "head.pt")]) == 2
        assert sentence in capsys.readouterr().err
    assert main(["settle", checkpoint("1.pt", 0), "--data", str(clips), "--out", str(tmp_path)]) == 2
    assert "is a folder" in capsys.readouterr().err
    assert main(["settle", "random", "--data", str(clips), "--out", str(tmp_path / "h.pt"), "--steps", "0"]) == 2
    assert "steps 0" in capsys.readouterr().err
