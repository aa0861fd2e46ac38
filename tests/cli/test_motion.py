"""`siammae motion`: numbers, table and picture of a tiny model, and a sentence for what has no motion to measure."""

import json

import pytest
import torch
from PIL import Image

from cli.main import main
from ml.checkpoints import save_checkpoint
from ml.SiamMAE import build_model
from tests.slowly import slowly


def checkpoint(path, model):
    save_checkpoint(path, dict(model=model.state_dict(), config=model.config, epoch=1, step=7, run="tiny"))
    return str(path)


def test_numbers_table_and_picture(clips, tmp_path, capsys):
    torch.manual_seed(0)
    mae = dict(img_size=32, patch_size=8, embed_dim=16, depth=1, num_heads=2)
    model = build_model(dict(model="SiamMAE", mae=mae, mask_ratio=0.9, decoder_size=[16, 2, 2]))
    path = checkpoint(tmp_path / "3.pt", model)
    assert main(["motion", path, "--data", str(clips), "--out", str(tmp_path / "out"), "--pairs", "7"]) == 0
    printed = capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "tiny_3.json").read_text())
    names = [*(f"shift {s}" for s in (4, 8, 12, 16)), "crops, known boxes", "shifted, known boxes", "synthetic world"]
    assert list(report["motion"]) == names
    for test in report["motion"].values():
        assert test["pairs"] == 7
        errors = test["errors"]["0.75"]
        assert errors["oracle"] < errors["mean"] < errors["model"]
        assert set(test["attention"]["f2 visible"]) == {"layer 1", "layer 2", "all layers", "chance"}
    assert report["motion"]["shift 8"]["errors"]["0.95"]["oracle"] == pytest.approx(0, abs=1e-6)
    assert report["video"]["0.95"]["all"]["copy"] > 0
    assert (tmp_path / "out" / "tiny_3.png").stat().st_size > 10_000
    assert "| synthetic world | layer 2 |" in printed
    assert (tmp_path / "out" / "tiny_3.md").read_text() in printed


def test_what_has_no_pairs(clips, tmp_path, capsys):
    arch = dict(img_size=32, patch_size=8, num_frames=4, pred_t_dim=2, embed_dim=16, depth=1, num_heads=2)
    decoder = dict(decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2)
    path = checkpoint(tmp_path / "1.pt", build_model(dict(model="MAE-ST", **arch, **decoder)))
    assert main(["motion", path, "--data", str(clips), "--out", str(tmp_path)]) == 2
    assert "a model of clips; motion is measured on a model of pairs" in capsys.readouterr().err
    assert main(["motion", path, "--data", str(clips), "--pairs", "0"]) == 2
    assert "pairs is 0" in capsys.readouterr().err


@pytest.mark.parametrize("train", [False, *slowly(True)])
def test_a_curriculum_with_photographs_that_is_watched(train, clips, quick, tmp_path, capsys):
    """`--schedule`, `--photos` and `--motion` of `siammae train`, in the smallest size, and what is refused."""
    files = sorted(clips.iterdir())
    for folder, part in (("train", files[:4]), ("test", files[4:])):
        (tmp_path / folder).mkdir()
        for file in part:
            (tmp_path / folder / file.name).symlink_to(file)
    (tmp_path / "photos").mkdir()
    for k in range(2):
        Image.effect_noise((120, 90), 60 + k).save(tmp_path / "photos" / f"{k}.png")
    given = ["train", "--data", str(tmp_path / "train"), "--preset", "smoke", "--root", str(tmp_path)]
    given += ["--batch-size", "4", "--image-size", "32", "--photos", str(tmp_path / "photos")]
    given += ["--test-data", str(tmp_path / "test")]
    given += ["--score-epochs", "1"]
    schedule = "0 shifted_patches 0.5; 1 mixed:video=1,shifted=1 0.75"
    if train:
        assert quick(*given, "--schedule", schedule, "--motion") == 0
        assert "4 video files and 2 pictures" in capsys.readouterr().out
        (log,) = (tmp_path / "losses").glob("*.jsonl")
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        measured = [line for line in lines if "shift 8: error" in line]
        assert len(measured) == 2 and all(0 <= line["shift 16: hits"] <= 1 for line in measured)
    assert main([*given, "--pairing", "jittered"]) == 2
    assert "the pairing jittered takes two frames, and a picture is one" in capsys.readouterr().err
    assert main([*given, "--pairing", "zoomed"]) == 2
    assert "pairing 'zoomed' is unknown; there are video, crops" in capsys.readouterr().err
    assert main([*given[:7], "--motion"]) == 2
    assert "give --test-data" in capsys.readouterr().err
