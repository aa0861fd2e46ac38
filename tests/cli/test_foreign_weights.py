"""Other projects' files, given to the commands as a person gives them, and nothing else."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cli.main import main
from dataset_loader.synthetic import synthetic_video
from tests.foreign import golden

ROOT = Path(__file__).parents[2]


@pytest.fixture
def davis(tmp_path):
    """One sequence of four frames in DAVIS's layout."""
    scene, root = synthetic_video(3, height=64, width=96, seconds=0.4, fps=10), tmp_path / "DAVIS"
    for kind in ("JPEGImages", "Annotations"):
        (root / kind / "480p" / "shapes").mkdir(parents=True)
    (root / "ImageSets" / "2017").mkdir(parents=True)
    (root / "ImageSets" / "2017" / "val.txt").write_text("shapes\n")
    for n, (frame, mask) in enumerate(zip(scene.frames.transpose(0, 2, 3, 1), scene.masks, strict=True)):
        Image.fromarray(frame).save(root / "JPEGImages" / "480p" / "shapes" / f"{n:05d}.jpg")
        picture = Image.fromarray(mask.astype(np.uint8), mode=None).convert("P")
        picture.putdata(mask.astype(np.uint8).flatten().tolist())
        picture.save(root / "Annotations" / "480p" / "shapes" / f"{n:05d}.png")
    return root


def test_a_published_number_is_printed_beside_ours(davis, tmp_path, capsys):
    path = golden("cropmae").write(tmp_path)
    words = ["eval", "davis", "--data", davis, "--source", f"{path},num_heads=4", "--size", "64x96", "--device", "cpu"]
    words = [str(word) for word in words]
    assert main([*words, "--out", str(tmp_path / "out"), "--expect", "cropmae_vits16_k400"]) == 0
    said = capsys.readouterr().out
    assert "checkpoint-399.pth: CropMAE, ViT-48×2/8, epoch 399" in said
    assert "here (protocol paper, changed); 58.6 published for CropMAE, ViT-S/16, Kinetics-400" in said
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    assert content["source"]["weights"] == f"sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}"
    assert main([*words, "--out", str(tmp_path / "b"), "--expect", "cropmae"]) == 2
    assert "no number of cropmae on davis is known; there are mae_pretrain_vit_base.pth" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_a_folder_follows_an_object(clips, tmp_path, capsys):
    (tmp_path / "timm").mkdir()
    folder = golden("timm_vit").write(tmp_path / "timm")
    video = next(clips.glob("*.mp4"))
    words = ["track", str(video), "--points", "60,52,1", "--source", f"{folder},num_heads=4", "--size", "short96"]
    assert main([*words, "--device", "cpu", "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "overlay.mp4").stat().st_size > 0
    assert "timm, ViT-48×2/8" in capsys.readouterr().out


def test_what_brings_a_decoder_is_drawn_and_the_rest_is_not(tmp_path, capsys):
    shutil.copy(ROOT / "samples.pickle", tmp_path)
    samples = ["--samples", str(tmp_path / "samples.pickle"), "--device", "cpu"]
    path = golden("tobo").write(tmp_path, num_heads=4, decoder_num_heads=3)
    assert main(["plot", str(path), "--out", str(tmp_path / "a.png"), *samples]) == 0
    assert (tmp_path / "a.png").stat().st_size > 10_000
    (tmp_path / "rsp").mkdir()
    path = golden("rsp").write(tmp_path / "rsp", num_heads=3)
    assert main(["plot", str(path), "--out", str(tmp_path / "b.png"), *samples]) == 2
    assert "brings no decoder that fits ours" in capsys.readouterr().err


@pytest.mark.slow  # the same numbers as its encoder has: `test_export`
def test_the_source_jax(davis, tmp_path, capsys):
    pytest.importorskip("jax", reason="needs the extra jax")
    assert main(["export", "siammae_micro_64", "--to", "jax", "--out", str(tmp_path / "jax"), "--root", str(ROOT)]) == 0
    words = ["eval", "davis", "--data", str(davis), "--size", "64x96", "--device", "cpu", "--root", str(ROOT)]
    scores = []
    for number, source in enumerate((f"jax:{tmp_path / 'jax' / 'encoder.safetensors'}", "siammae_micro_64")):
        assert main([*words, "--source", source, "--out", str(tmp_path / str(number))]) == 0
        scores.append(json.loads((tmp_path / str(number) / "results.json").read_text())["row"]["J&F-Mean"])
    assert scores[0] == pytest.approx(scores[1], abs=1e-3)
