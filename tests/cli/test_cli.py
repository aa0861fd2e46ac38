"""The command as a person uses it: the whole way in small, and one clear sentence for each mistake."""

import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file

from cli.main import main
from mae.patches import normalize
from ml.checkpoints import find_checkpoint, load_model
from ml.logs import read_losses
from ml.samples import load_samples

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(clips, tmp_path_factory):
    """A run of the smoke preset: (root, name)."""
    root = tmp_path_factory.mktemp("root")
    assert main(["train", "--data", str(clips), "--preset", "smoke", "--root", str(root), "--prefix", "cli_"]) == 0
    (log,) = (root / "losses").glob("*.txt")
    return root, log.stem


def test_from_training_to_pictures(run, clips, tmp_path, capsys):
    root, name = run
    assert name.startswith("cli_20") and len(read_losses(root / "losses" / f"{name}.txt")) == 2
    samples = tmp_path / "samples.pickle"
    assert main(["samples", "--out", str(samples), "--count", "2", "--size", "48"]) == 0
    assert load_samples(samples)["video"].shape == (2, 2, 3, 48, 48)
    more = tmp_path / "more.pickle"
    assert main(["samples", "--out", str(more), "--count", "8", "--size", "48", "--data", str(clips)]) == 0
    assert len({video.tobytes() for video in load_samples(more)["video"]}) == 8  # of six videos
    options = ["--root", str(root), "--samples", str(samples)]
    assert main(["test", name, "--data", str(clips), "--pairs-per-video", "2", "--workers", "0", *options]) == 0
    (line,) = read_losses(root / "test_losses" / f"{name}.txt")
    assert line.epoch == 2 and "12 pairs of 6 videos" in capsys.readouterr().out
    assert main(["plot", f"{name}/1", "--out", str(tmp_path / "plot.png"), *options]) == 0
    log = str(root / "losses" / f"{name}.txt")
    assert main(["compare", log, str(root / "test_losses" / f"{name}.txt"), "--out", str(tmp_path / "c.png")]) == 0
    assert "2 epochs, loss" in capsys.readouterr().out
    for picture in (tmp_path / "plot.png", tmp_path / "c.png", root / "test_losses" / f"{name}_2.png"):
        assert picture.read_bytes().startswith(b"\x89PNG")


@torch.no_grad()
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_the_exported_encoder_is_timms(suffix, run, tmp_path):
    root, name = run
    out = tmp_path / f"encoder{suffix}"
    assert main(["export", name, "--out", str(out), "--root", str(root)]) == 0
    weights = load_file(out) if suffix == ".safetensors" else torch.load(out, weights_only=True)["model"]
    model, _ = load_model(find_checkpoint(name, root))
    sizes = dict(img_size=64, patch_size=8, embed_dim=128, depth=6, num_heads=4, num_classes=0)
    theirs = timm.models.VisionTransformer(**sizes).eval()
    theirs.load_state_dict(weights, strict=True)
    frames = torch.rand(2, 3, 64, 64)
    features = theirs.forward_features(normalize(frames))[:, 1:].unflatten(1, (8, 8))
    torch.testing.assert_close(features, model.encode(frames), rtol=0, atol=1e-5)


def test_resuming_from_the_shell(run, clips, capsys):
    root, name = run
    options = ["--data", str(clips), "--preset", "smoke", "--root", str(root), "--resume", name]
    assert main(["train", *options, "--epochs", "3"]) == 2
    assert "epochs was 2 and is now 3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["train", "--data", "nowhere"], "nowhere"),
        (["train", "--data", "{empty}"], "holds no video"),
        (["train", "--data", "{clips}", "--preset", "macro"], "preset 'macro' is unknown; there are micro"),
        (["train", "--data", "{clips}", "--mask-ratio", "95"], "0.95 for 95 %"),
        (["train", "--data", "{clips}", "--test-data", "{clips}"], "lies in"),
        (["train", "--data", "{clips}", "--preset", "smoke", "--resume", "no"], "no checkpoint no"),
        (["train", "--data", "{clips}", "--preset", "mae_base_75", "--weights", "{empty}"], "mae_visualize_vit_base"),
        (["train", "--data", "{clips}", "--batch-size", "3"], "does not divide"),
        (["train", "--data", "{clips}", "--mask-ratio", "0"], "all 64 patches stay visible"),
        (["train", "--data", "{clips}", "--image-size", "60"], "60×60 pixels does not divide"),
        (["train", "--data", "{clips}", "--preset", "mae_st_micro", "--clip-frames", "7"], "clip of 7 frames"),
        (["train", "--data", "{clips}", "--preset", "mae_st_micro", "--encoder-kind", "joint"], "means nothing to"),
        (["train", "--data", "{clips}", "--mask-kind", "tube"], "means nothing to siammae_micro_patch8"),
        (["train", "--data", "{clips}", "--base-lr", "nan"], "base_lr is nan"),
        (["train", "--data", "{clips}", "--device", "gpu"], "device 'gpu' is not here; there is c"),
        (
            ["plot", "siammae_micro_64", "--root", str(ROOT), "--out", "x.png", "--device", "cuda:9"],
            "'cuda:9' is not here",
        ),
        (["test", "no", "--data", "{clips}"], "no checkpoint no"),
        (["plot", "no", "--out", "x.png"], "no checkpoint no"),
        (["compare", "no.txt", "--out", "x.png"], "no loss log no.txt"),
        (["compare", "--out", "x.png"], "at least one"),
        (["samples", "--out", "{text}"], "not overwritten"),
        (["samples", "--out", "s.pickle", "--count", "0"], "count is 0"),
        (["weights", "nosuch.pth"], "no public weights of that name; there are mae_"),
        (["learn", "--data", "{clips}", "--held-out", "0.01"], "0 is held out; the comparison takes 2"),
        (["export", "{text}", "--out", "x.pth"], "text.mp4"),
        (["export", "{text}", "--out", "x"], "x ends in nothing; weights are written as .safetensors, .pth or .pt"),
        (["export", "{text}", "--out", "x.onnx"], "x.onnx ends in .onnx"),
        (["demo", "--data", "{empty}"], "holds no video"),
        (["samples", "--out", "{text}/x"], "is not a folder"),
        (["fly"], "'fly' is not a command"),
        ([], ""),
    ],
)
def test_a_mistake_gets_one_sentence(arguments, sentence, clips, tmp_path, monkeypatch, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.mp4").write_text("hello")
    places = dict(clips=clips, empty=tmp_path / "empty", text=tmp_path / "text.mp4")
    monkeypatch.chdir(tmp_path)
    assert main([word.format(**places) for word in arguments]) == 2
    output = capsys.readouterr()
    assert sentence in output.err and "Traceback" not in output.err and len(output.err.splitlines()) <= 1
    assert {p.name for p in tmp_path.iterdir()} <= {"empty", "text.mp4", "checkpoints", "losses"}


def test_flags_come_from_the_preset(clips, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["train", "--data", str(clips), "--preset", "paper_small_16", "--help"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    assert "2048" in text and "siammae_small_patch16" in text
    with pytest.raises(SystemExit) as exit_:
        main(["train", "--data", str(clips), "--no-such-flag", "1"])
    assert exit_.value.code == 2


def test_curves_are_compared_without_torch(tmp_path):
    (tmp_path / "a.txt").write_text("Epoch 1 - Avg Loss: 0.5 Losses - [0.6, 0.4]\n")
    code = "import sys; from cli.main import main; code = main(sys.argv[1:]); sys.exit(code or 'torch' in sys.modules)"
    words = ["compare", str(tmp_path / "a.txt"), "--out", str(tmp_path / "a.png")]
    result = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stdout + result.stderr
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
