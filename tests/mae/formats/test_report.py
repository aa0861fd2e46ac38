"""`siammae weights`: the table of published files, and what is told of any file."""

import pytest
import torch

from cli.main import main
from common.errors import InputError
from mae.formats import FAMILIES, load
from mae.formats.report import report
from mae.public import PUBLIC, PUBLIC_WEIGHTS, PUBLIC_WEIGHTS_ST


def test_what_is_told_of_a_file(golden, tmp_path, capsys):
    path = golden("tobo").write(tmp_path, epochs=400, blr=1.5e-4, mask_ratio=0.9)
    assert main(["weights", "inspect", f"{path},num_heads=4,decoder_num_heads=3"]) == 0
    said = capsys.readouterr().out
    for words in (
        "kind           ToBo", "ToBo, ViT-48×2/8, epoch 399", "48 wide, 2 deep, 4 heads, trained at 48×48",
        "std 0.229 0.224 0.225", "by a scale factor", "its decoder, 24 × 2 × 3, comes along", "epoch          399",
        "blr=0.00015 epochs=400",
    ):  # fmt: skip
        assert words in said, words
    assert main(["weights", "inspect", str(path)]) == 0
    assert "not read" in (said := capsys.readouterr().out) and "checkpoint-399.pth,num_heads=4" in said
    assert "epochs=400" in said  # what can be told is told


@pytest.mark.parametrize("name", ["videomae", "timm_vit", "replicate_siammae", "tcore"])
def test_what_is_told_of_others(golden, tmp_path, name):
    told = dict(report(f"{golden(name).write(tmp_path)},num_heads=4"))
    assert told["draw with it"].startswith("no")
    assert ("no: " in told["train from it"]) == (name == "replicate_siammae")
    if name == "videomae":
        assert "clips of 16 frames, no class token" in told["encoder"] and told["positions"].startswith("computed")
    if name == "timm_vit":
        assert "2 registers, LayerScale" in told["encoder"] and told["pixels"] == "mean 0.5 0.5 0.5, std 0.5 0.5 0.5"


def test_files_that_are_something_else(tmp_path, capsys):
    (tmp_path / "a.pth").write_bytes(b"<html>quota exceeded</html>")
    assert main(["weights", "inspect", str(tmp_path / "a.pth")]) == 2
    assert "is a web page" in capsys.readouterr().err
    torch.save({"lm_head.weight": torch.zeros(3)}, tmp_path / "b.pth")
    assert dict(report(tmp_path / "b.pth"))["not read"].startswith("it reads words")
    with pytest.raises(InputError, match="holds a language model"):
        load(tmp_path / "b.pth")


def test_the_table_of_published_weights(capsys):
    assert main(["weights"]) == 0
    said = capsys.readouterr().out
    for row in PUBLIC:
        assert row.name in said and row.licence and row.where.startswith("https://")
        assert not row.scores or (row.protocol and row.cited), f"{row.name}: a number without its protocol or source"
    for family in ("CropMAE", "RSP", "ToBo", "CatMAE", "T-CoRe", "DINO", "MAE", "MAE-ST", "VideoMAE", "timm"):
        assert any(row.family == family for row in PUBLIC)
    known = {family.name for family in FAMILIES.values()} | {"Transformers"}
    assert {row.family for row in PUBLIC} <= known
    assert len(PUBLIC_WEIGHTS) == 11 and len(PUBLIC_WEIGHTS_ST) == 2
    assert all(row.direct for row in PUBLIC if row.family in ("MAE", "MAE-ST", "DINO"))


def test_what_must_be_fetched_by_hand_is_said(capsys):
    assert main(["weights", "cropmae_vits16_k400"]) == 2
    assert "by hand, from https://github.com/alexandre-eymael/CropMAE" in capsys.readouterr().err
    assert main(["weights", "mae_vit"]) == 2
    assert "no public weights of that name; there are mae_visualize_vit_base.pth" in capsys.readouterr().err
    assert main(["weights", "inspect"]) == 2 and main(["weights", "a", "b"]) == 2
