"""Checkpoints and exports of this workspace are one family among the others."""

import json

import torch
from safetensors.torch import save_file

from mae.formats import load, load_encoder
from mae.models_mae import MAEEncoder
from ml.foreign import is_checkpoint, is_foreign, open_model
from ml.SiamMAE import SiamMAE, build_model

SIZES = dict(img_size=(32, 48), patch_size=8, embed_dim=48, depth=2, num_heads=4, mlp_ratio=4.0)


def model():
    torch.manual_seed(0)
    return SiamMAE(MAEEncoder(**SIZES), 0.9, decoder_size=(32, 2, 4)).eval()


@torch.no_grad()
def test_a_checkpoint_with_its_averaged_weights(tmp_path):
    own, images = model(), torch.randint(0, 256, (2, 3, 40, 48), dtype=torch.uint8)
    averaged = {name: value * 1.5 for name, value in own.state_dict().items() if name.startswith("encoder.blocks")}
    path = tmp_path / "last.pt"
    torch.save({"model": own.state_dict(), "config": own.config, "epoch": 3, "averaged": {}}, path)
    assert torch.equal(load_encoder(path).encode(images), own.encode(images)) and is_checkpoint(path)
    torch.save({"model": own.state_dict(), "config": own.config, "epoch": 3, "averaged": averaged}, path)
    loaded = load(path)
    assert "SiamMAE of this workspace" in loaded.about and "epoch 3" in loaded.about and "averaged" in loaded.about
    own.load_state_dict(own.state_dict() | averaged)
    assert torch.equal(loaded.encoder.encode(images), own.encode(images))


@torch.no_grad()
def test_a_model_starts_from_a_checkpoint_with_its_decoder(tmp_path, monkeypatch):
    from ml import SiamMAE as models

    own = model()
    torch.save({"model": own.state_dict(), "config": own.config, "epoch": 3}, tmp_path / "last.pt")
    monkeypatch.setitem(models.MODELS, "siammae_micro_patch8", (models._siamese, dict(encoder=dict(SIZES))))
    started = build_model("siammae_micro_patch8", weights=str(tmp_path / "last.pt"))
    assert started.decoder.size == own.decoder.size
    assert all(torch.equal(a, b) for a, b in zip(started.state_dict().values(), own.state_dict().values(), strict=True))


@torch.no_grad()
def test_an_exported_encoder(tmp_path):
    own, images = model(), torch.randint(0, 256, (1, 3, 32, 48), dtype=torch.uint8)
    save_file(own.encoder.state_dict(), tmp_path / "a.safetensors", {k: str(v) for k, v in own.encoder.config.items()})
    loaded = load(tmp_path / "a.safetensors")
    assert loaded.family.name == "SiamMAE of this workspace" and torch.equal(
        loaded.encoder.encode(images), own.encode(images)
    )


def test_a_folder_of_timm_is_ours_only_if_it_says_so(tmp_path):
    """Not because all our sizes are in it: its pixel statistics are its own."""
    own, about = model(), dict(mean=[0.5] * 3, std=[0.5] * 3, tag="augreg")
    save_file({k: v for k, v in own.encoder.state_dict().items()}, tmp_path / "model.safetensors")
    for tag, mean in (("augreg", (0.5, 0.5, 0.5)), ("siammae", None)):
        config = dict(architecture="vit_base", model_args=dict(SIZES), pretrained_cfg={**about, "tag": tag})
        (tmp_path / "config.json").write_text(json.dumps(config))
        loaded = load(tmp_path)
        assert getattr(loaded.encoder, "mean", None) == mean and loaded.encoder.num_heads == 4


def test_which_names_are_of_others(tmp_path, golden):
    own = model()
    torch.save({"model": own.state_dict(), "config": own.config, "epoch": 3}, tmp_path / "last.pt")
    assert not any(map(is_foreign, (str(tmp_path / "last.pt"), "siammae_micro_64", "no such run")))
    (tmp_path / "folder").mkdir()
    folder = golden("timm_vit").write(tmp_path / "folder")
    path = golden("tobo").write(tmp_path, num_heads=4, decoder_num_heads=3)
    assert is_foreign(str(folder)) and is_foreign(str(path)) and is_foreign(f"{path},num_heads=4")


@torch.no_grad()
def test_what_is_drawn_of_another_projects_file(golden, tmp_path):
    recorded = golden("tobo")
    model, about = open_model(str(recorded.write(tmp_path, num_heads=4, decoder_num_heads=3, mask_ratio=0.9)))
    loss, prediction, _ = model(recorded.pairs(), noise=recorded["noise"])
    torch.testing.assert_close(prediction, recorded["pred_cross"], rtol=0, atol=5e-5)
    torch.testing.assert_close(loss, recorded["loss_cross"], rtol=0, atol=5e-5)
    assert about["run"] == "checkpoint-399.pth"
