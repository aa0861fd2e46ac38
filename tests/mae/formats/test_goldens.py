"""Each family's file gives the features that its own code computed, and says what it is."""

import pytest
import torch

from common.errors import InputError
from mae.formats import load, load_encoder

SAID = {
    "catmae": "CatMAE, ViT-36×2/8, epoch 399, 2 blocks, 3 heads; decoder left out: post-norm",
    "cropmae": "CropMAE, ViT-48×2/8, epoch 399, 2 blocks, 4 heads; decoder left out: post-norm",
    "dino": "DINO, ViT-40×2/8, epoch 100, 2 blocks, 5 heads, the teacher",
    "eleander_siammae": "SiamMAE of eleander, ViT-48×2/4, 2 blocks, 4 heads; decoder left out: one cross-attention",
    "hf_vitmae": "ViTMAE of Transformers, ViT-48×2/8, 2 blocks, 4 heads",
    "mae3d": "MAE3D, ViT-40×2/2×8, epoch 399, 2 blocks, 5 heads; decoder left out",
    "replicate_siammae": "SiamMAE of replicate_siamMAE, ViT-40×2/8, 2 blocks, 4 heads; decoder left out",
    "rsp": "RSP, ViT-48×2/8, epoch 399, 2 blocks, 3 heads; decoder left out",
    "tcore": "T-CoRe, ViT-48×2/8, 2 blocks, 4 heads, the teacher",
    "timm_vit": "timm, ViT-48×2/8, 2 blocks, 4 heads",
    "tobo": "ToBo, ViT-48×2/8, epoch 399, 2 blocks, 4 heads; with its cross-self decoder",
    "videomae": "VideoMAE, ViT-48×2/2×8, epoch 399, 2 blocks, 4 heads; decoder left out",
}
close = dict(rtol=0, atol=5e-5)


@pytest.mark.parametrize("name", SAID)
@torch.no_grad()
def test_features_and_positions_are_those_of_their_own_code(golden, tmp_path, name):
    recorded, said = golden(name), []
    encoder = load_encoder(recorded.write(tmp_path), num_heads=recorded.num_heads, say=said.append)
    assert SAID[name] in said[0]
    compared = 0
    for size in [k.removeprefix("images_") for k in recorded.tensors if k.startswith("images_")]:
        images = recorded.video(f"images_{size}")
        torch.testing.assert_close(encoder.encode(images), recorded[f"features_{size}"], **close)
        torch.testing.assert_close(encoder.encode(images.float() / 255), recorded[f"features_{size}"], **close)
        if f"positions_{size}" in recorded.tensors:
            h, w = recorded[f"features_{size}"].shape[1:3]
            expected = recorded[f"positions_{size}"]
            table = encoder.positions(h, w)[:, -expected.shape[1] :]
            torch.testing.assert_close(table, expected, rtol=0, atol=1e-6)
        compared += 1
    if "clip" in recorded.tensors:
        torch.testing.assert_close(encoder.encode_clip(recorded.video("clip")), recorded["features"], **close)
        compared += 1
    assert compared


@torch.no_grad()
def test_videomae_positions(golden, tmp_path):
    recorded = golden("videomae")
    encoder = load_encoder(recorded.write(tmp_path), num_heads=4)
    torch.testing.assert_close(encoder.positions(2, 5, steps=8), recorded["positions_encoder"], rtol=0, atol=1e-6)
    sized = load_encoder(recorded.write(tmp_path, img_size=[32, 40], num_frames=16), num_heads=4)
    assert not torch.allclose(sized.positions(2, 5, steps=8), recorded["positions_encoder"], atol=1e-2)
    assert sized.encode(recorded.video("clip")[:, 0]).shape == (1, 2, 5, 48)  # an image, as a still clip


@torch.no_grad()
def test_dino_student_is_read_where_there_is_no_teacher(golden, tmp_path):
    recorded = golden("dino")
    torch.save({"student": recorded.below("state.student."), "epoch": 7}, tmp_path / "a.pth")
    loaded = load(tmp_path / "a.pth", num_heads=5)
    assert "the student" in loaded.about
    features = loaded.encoder.encode(recorded.video("images_48x80")[:1])
    torch.testing.assert_close(features, recorded["student_features_48x80"], **close)


@torch.no_grad()
def test_a_frame_of_dinos_evaluation(golden, tmp_path):
    recorded = golden("dino")
    encoder = load_encoder(recorded.write(tmp_path), num_heads=5)
    frame = recorded["raw_frame_input"][None] * torch.tensor([0.228, 0.224, 0.225]).view(3, 1, 1)
    frame = (frame + torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)).clamp(0, 1)
    torch.testing.assert_close(encoder.encode(frame)[0], recorded["raw_frame_features"], **close)


def test_heads_are_asked_for_where_nothing_tells_them(golden, tmp_path):
    path = golden("cropmae").write(tmp_path)
    with pytest.raises(InputError, match=r"how many heads its encoder has .* 48 wide × 2 deep .*num_heads=4"):
        load_encoder(path)
    assert load_encoder(f"{path},num_heads=4").num_heads == 4
    with pytest.raises(InputError, match="5 heads do not divide its width of 48"):
        load_encoder(path, num_heads=5)
    assert load_encoder(golden("cropmae").write(tmp_path, num_heads=3)).num_heads == 3
