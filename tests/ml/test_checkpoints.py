"""Checkpoints, loss logs, samples, exports: what is written can be read, and what is not ours is refused in words."""

import pickle

import numpy as np
import pytest
import timm
import torch

from common.errors import InputError
from mae.models_mae import MAEEncoder
from mae.patches import normalize
from ml.checkpoints import encoder_for_timm, find_checkpoint, load_model, load_run, save_checkpoint
from ml.logs import EpochLoss, append_line, cut_after, read_losses
from ml.samples import load_samples, save_samples
from ml.SiamMAE import SiamMAE, build_model


def tiny():
    return SiamMAE(MAEEncoder(img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=4), decoder_size=(32, 1, 2))


def test_a_checkpoint_gives_the_model_back(tmp_path):
    model = tiny()
    path = tmp_path / "checkpoints" / "run" / "3.pt"
    save_checkpoint(path, dict(model=model.state_dict(), config=model.config, epoch=3))
    for name in (path, "run/3"):
        again, saved = load_model(find_checkpoint(name, tmp_path))
        assert saved["epoch"] == 3
        assert all(
            torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True)
        )
    with pytest.raises(InputError, match="there are no runs"):
        find_checkpoint("walk", tmp_path)
    assert [p.name for p in path.parent.iterdir()] == ["3.pt"]  # no temporary file stays


def test_what_is_no_checkpoint_is_said(tmp_path):
    path = tmp_path / "x.pt"
    torch.save({"model": tiny().state_dict()}, path)
    with pytest.raises(InputError, match="config, epoch"):
        load_run(path)
    torch.save(tiny(), path)
    with pytest.raises(InputError, match="state_dict"):  # a whole module: refused, with how to convert it
        load_run(path)
    model = tiny()
    state = model.state_dict()
    del state["decoder.norm.weight"]
    torch.save(dict(model=state, config=model.config, epoch=1), path)
    with pytest.raises(InputError, match=r"decoder\.norm\.weight"):
        load_model(path)


def test_an_interrupted_write_leaves_what_was(tmp_path):
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"epoch": 1})

    class Unwritable:
        def __reduce__(self):
            raise RuntimeError("power failure")

    with pytest.raises(RuntimeError):
        save_checkpoint(path, {"epoch": 2, "x": Unwritable()})
    assert torch.load(path, weights_only=True) == {"epoch": 1} and len(list(tmp_path.iterdir())) == 1


def test_logs_are_read_as_they_are_written(tmp_path):
    path = tmp_path / "losses" / "run.txt"
    lines = [EpochLoss(1, 0.3, [0.1, 0.5]), EpochLoss(2, 1 / 3, [1 / 3]), EpochLoss(None, 2.0, [1e-7, 4.0])]
    for line in lines:
        append_line(path, line)
    assert read_losses(path) == lines
    assert path.read_text().splitlines()[0] == "Epoch 1 - Avg Loss: 0.3 Losses - [0.1, 0.5]"
    assert path.read_text().splitlines()[2] == "Avg Loss: 2.0 Losses - [1e-07, 4.0]"
    cut_after(path, 1)
    assert read_losses(path) == lines[:1]


def test_logs_of_the_public_replications_are_read(tmp_path):
    path = tmp_path / "log.txt"
    path.write_text(
        "Epoch 0 - Avg Loss: 0.75 Losses - [0.5, 1.0]\n"
        "\n"
        "Avg Loss: 0.5 Losses - [tensor(0.4, device='cuda:0'), tensor(0.6, grad_fn=<MseLossBackward0>)]\n"
        "Epoch 2 - Avg Loss: nan Losses - [np.float64(nan), np.float32(1.5e-3)]\n"
    )
    read = read_losses(path)
    assert [line.epoch for line in read] == [0, None, 2]
    assert read[0].losses == [0.5, 1.0] and read[1].losses == [0.4, 0.6] and read[2].losses[1] == 1.5e-3
    path.write_text("Epoch 0 - Avg Loss: 0.75 Losses - [0.5]\nepoch,loss\n")
    with pytest.raises(InputError, match="line 2"):
        read_losses(path)
    path.write_text("Epoch 0 - Avg Loss: 0.75 Losses - [half]\n")
    with pytest.raises(InputError, match="line 1"):
        read_losses(path)


def test_samples_are_plain_arrays_and_nothing_else_is_read(tmp_path):
    path = tmp_path / "samples.pickle"
    video = np.random.default_rng(0).integers(0, 256, (3, 2, 3, 16, 24), dtype=np.uint8)
    save_samples(path, video, np.zeros((3, 2)), ["a", "b", "c"])
    read = load_samples(path)
    assert np.array_equal(read["video"], video) and read["name"] == ["a", "b", "c"]
    with pytest.raises(InputError, match="not overwritten"):
        save_samples(path, video, np.zeros((3, 2)), ["a", "b", "c"])

    class Malice:
        def __reduce__(self):
            return (open, (str(tmp_path / "pwned"), "w"))

    for content in (
        pickle.dumps({"video": video, "x": Malice()}), pickle.dumps({"video": tiny()}), path.read_bytes()[:-50], b"",
        b"<html>", pickle.dumps([video]), pickle.dumps({"video": video.astype(float), "time": [], "name": []}),
        pickle.dumps({"video": video, "time": np.zeros((2, 2)), "name": ["a"]}),
    ):  # fmt: skip
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"samples\.pickle"):
            load_samples(path)
    assert not (tmp_path / "pwned").exists()
    with pytest.raises(InputError, match="siammae samples"):
        load_samples(tmp_path / "none.pickle")


def test_every_pickle_protocol_of_plain_arrays_is_read(tmp_path):
    video = np.zeros((1, 2, 3, 8, 8), dtype=np.uint8)
    for protocol in range(2, 6):
        (tmp_path / "x").write_bytes(pickle.dumps({"video": video, "time": np.zeros((1, 2)), "name": ["a"]}, protocol))
        assert load_samples(tmp_path / "x")["video"].shape == video.shape


@torch.no_grad()
def test_timm_gives_the_same_features_with_the_exported_encoder():
    torch.manual_seed(0)
    model = build_model("siammae_small_patch16").eval()
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.02)
    theirs = timm.create_model("vit_small_patch16_224", num_classes=0).eval()
    theirs.load_state_dict(encoder_for_timm(model), strict=True)
    frames = torch.rand(2, 3, 224, 224)
    features = theirs.forward_features(normalize(frames))[:, 1:].unflatten(1, (14, 14))
    torch.testing.assert_close(features, model.encode(frames), rtol=0, atol=1e-5)
