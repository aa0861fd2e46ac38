"""MAE-ST's weights: public names there and back, files of others, and image models that are inflated."""

import argparse

import pytest
import torch
from safetensors.torch import save_file

from common.errors import InputError
from mae.models_mae import ARCHITECTURES
from mae.models_mae_st import ARCHITECTURES_ST, SpatiotemporalMAE, fuse_qkv, split_qkv
from mae.patches import IMAGENET_MEAN, IMAGENET_STD
from mae.weights import PUBLIC_WEIGHTS_ST, load_pretrained_st
from tests import foreign
from tests.mae.small_st import TINY, close, recorded


def test_public_names_there_and_back(tmp_path):
    """q, k, v are fused on load and split on export: the same names, shapes and numbers."""
    _, state = recorded("mae_st_tiny")
    fused = fuse_qkv(state)
    q, k, v = (state[f"blocks.1.attn.{part}.weight"] for part in "qkv")
    assert torch.equal(fused["blocks.1.attn.qkv.weight"], torch.cat([q, k, v]))
    model = SpatiotemporalMAE(**TINY)
    assert {name: value.shape for name, value in fused.items()} == {n: v.shape for n, v in model.state_dict().items()}
    model.load_state_dict(fused)
    public = model.public_state_dict()
    assert public.keys() == state.keys() and all(torch.equal(public[name], state[name]) for name in state)
    assert fuse_qkv(fused).keys() == fused.keys()  # our own names pass
    assert all(torch.equal(a, fused[name]) for name, a in fuse_qkv(split_qkv(fused)).items())


@pytest.mark.parametrize("under", ["model", "model_state"])
def test_public_files_load_strictly(tmp_path, arch, under, capsys):
    figures, state = recorded("mae_st_tiny")
    path = tmp_path / "mae_pretrain_vit_large_k400.pth"
    torch.save({under: state, "epoch": 3}, path)
    for place in (path, tmp_path):  # the file, or its folder
        model = load_pretrained_st(place, arch, mask_ratio=0.8)
        assert model.norm_pix_loss and model.mask_ratio == 0.8
        assert all(torch.equal(value, state[name]) for name, value in model.public_state_dict().items())
    torch.save({under: state, "args": argparse.Namespace(norm_pix_loss=False)}, path)
    assert not load_pretrained_st(path, arch).norm_pix_loss
    torch.save(model.public_state_dict(), path)  # written back, read again
    assert load_pretrained_st(path, arch).state_dict().keys() == model.state_dict().keys()

    encoder = {name: value for name, value in state.items() if "decoder" not in name and name != "mask_token"}
    torch.save({under: encoder}, path)
    assert "encoder only" not in capsys.readouterr().out
    assert torch.equal(load_pretrained_st(path, arch).pos_embed_temporal, state["pos_embed_temporal"])
    assert "encoder only" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("known", [True, False])
def test_a_file_of_this_workspace_says_how_its_pixels_were_normalised(tmp_path, arch, suffix, known):
    """One from before that was a part of the model was trained with ImageNet's."""
    model = SpatiotemporalMAE(**TINY, pixel_mean=(0.1, 0.2, 0.3), norm_pix_loss=not known)
    config = {name: v for name, v in model.config.items() if known or not name.startswith("pixel_")}
    path = tmp_path / f"mine.{suffix}"
    if suffix == "pth":
        torch.save({"model": model.state_dict(), "config": config}, path)
    else:
        save_file(model.public_state_dict(), path, metadata={name: str(v) for name, v in config.items()})
    read = load_pretrained_st(path, arch)
    mean, std = ((0.1, 0.2, 0.3), (0.225,) * 3) if known else (IMAGENET_MEAN, IMAGENET_STD)
    assert (read.pixel_mean, read.pixel_std, read.norm_pix_loss) == (mean, std, not known)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda s: s.pop("pos_embed_temporal"), "1 missing: pos_embed_temporal"),
        (lambda s: s.pop("decoder_pos_embed_class"), "1 missing: decoder_pos_embed_class"),
        (lambda s: s.update(pos_embed=torch.zeros(1, 65, 48)), "1 unexpected: pos_embed"),
        (lambda s: s.update(pos_embed_temporal=torch.zeros(1, 8, 48)), r"\[1, 8, 48\] for \[1, 4, 48\]"),
        (lambda s: s.pop("blocks.0.attn.k.bias"), r"missing: blocks.0.attn.qkv.bias.*unexpected: blocks.0.attn.q.bias"),
        (lambda s: s.update({"blocks.0.attn.v.weight": torch.zeros(24, 48)}), "blocks.0.attn.qkv.weight"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path, arch, change, match):
    _, state = recorded("mae_st_tiny")
    change(state)
    torch.save({"model": state}, tmp_path / "mine.pth")
    with pytest.raises(InputError, match=match):
        load_pretrained_st(tmp_path / "mine.pth", arch)


def test_image_weights_are_inflated_on_load(tmp_path, arch, capsys):
    mae = ARCHITECTURES["mae_vit_large_patch16"]()
    torch.save({"model": mae.state_dict()}, tmp_path / "mae_pretrain_vit_large.pth")
    model = load_pretrained_st(tmp_path / "mae_pretrain_vit_large.pth", arch, num_frames=4, pred_t_dim=4)
    images = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        expected = mae.eval().encode(images)
        close(model.eval().encode(images, steps=1), expected, atol=4e-6 * expected.abs().max().item())
    assert "inflated" in capsys.readouterr().out
    with pytest.raises(InputError, match="none of the size of mae_st_vit_huge_patch16 to inflate"):
        load_pretrained_st(tmp_path / "mae_pretrain_vit_large.pth", "mae_st_vit_huge_patch16")


@pytest.mark.parametrize("name", ["videomae", "mae3d"])
@torch.no_grad()
def test_clip_models_of_others_are_started_from(name, tmp_path, monkeypatch, capsys):
    """MAE3D's encoder is ours; VideoMAE's has no class token, and positions that are no sum of place and step."""
    recorded = foreign.golden(name)
    width, heads = (48, 4) if name == "videomae" else (40, 5)
    sizes = dict(TINY, embed_dim=width, num_heads=heads)
    arch = "mae_st_vit_small_patch16"
    monkeypatch.setitem(ARCHITECTURES_ST, arch, lambda **kw: SpatiotemporalMAE(**{**sizes, **kw}))
    args = dict(img_size=[16, 40]) if name == "videomae" else {}
    model = load_pretrained_st(
        recorded.write(tmp_path, num_frames=recorded.video("clip").shape[1], **args), arch
    ).eval()
    said = capsys.readouterr().out
    assert "the decoder starts untrained" in said and model.pixel_mean == IMAGENET_MEAN
    assert ("the nearest sum of one for the place and one for the step; a class token" in said) == (name == "videomae")
    features = model.encode_clip(recorded.video("clip"))
    if name == "mae3d":
        close(features, recorded["features"], atol=5e-5)
    else:
        theirs = recorded["positions_encoder"][0]
        close(model.positions("pos_embed", model.steps, model.grid).mean(0), theirs.mean(0), atol=1e-5)
        assert features.shape == recorded["features"].shape
    sizes["num_heads"] = heads * 2
    with pytest.raises(InputError, match=f"attention of {heads} heads, and {arch} of {heads * 2}"):
        load_pretrained_st(f"{tmp_path / 'checkpoint-399.pth'},num_heads={heads}", arch)


def test_names_without_weights(tmp_path):
    with pytest.raises(InputError, match="unknown architecture 'mae_vit_large_patch16'; there are mae_st_vit_small"):
        load_pretrained_st(tmp_path, "mae_vit_large_patch16")
    with pytest.raises(InputError, match="no public weights for mae_st_vit_small_patch16"):
        load_pretrained_st(tmp_path, "mae_st_vit_small_patch16")
    url = PUBLIC_WEIGHTS_ST["mae_pretrain_vit_huge_k400.pth"]
    with pytest.raises(InputError, match=f"fetch {url}"):
        load_pretrained_st(tmp_path, "mae_st_vit_huge_patch16")
    with pytest.raises(InputError, match=f"fetch {url}"):
        load_pretrained_st(tmp_path / "mae_pretrain_vit_huge_k400.pth", "mae_st_vit_huge_patch16")
