"""Feature sources bring their own normalisation and patches, and say how to get weights that are not there."""

from dataclasses import replace

import pytest
import timm
import torch

from common.errors import InputError
from evaluation.features import architecture, centred, feature_source, model_source, pixel_features
from mae.models_mae import ARCHITECTURES, MaskedAutoencoderViT
from mae.patches import normalize


@pytest.fixture(scope="module")
def images():
    return torch.randint(0, 256, (2, 3, 96, 128), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_pixels_are_normalised_patches(images):
    source = feature_source("pixels")
    features = source.encode(images)
    assert features.shape == (2, 6, 8, 768) and source.patch_size == 16
    patch = normalize(images)[1, :, 16:32, 48:64]
    assert torch.equal(features[1, 1, 3].sort().values, patch.flatten().sort().values)
    assert pixel_features(images, 8).shape == (2, 12, 16, 192)


def test_random_is_an_untrained_small_vit_and_the_same_every_time(images):
    state = torch.get_rng_state()
    one, again = feature_source("random"), feature_source("random")
    assert torch.equal(torch.get_rng_state(), state)
    small = images[:1, :, :32, :48]
    assert one.encode(small).shape == (1, 2, 3, 384)
    assert torch.equal(one.encode(small), again.encode(small))
    assert "ViT-S/16" in one.name


def test_a_model_of_the_workspace_is_a_source(images):
    model = MaskedAutoencoderViT(48, 8, 48, 2, 4, decoder_embed_dim=32, decoder_depth=1, decoder_num_heads=4)
    source = model_source("mine", model)
    features = source.encode(images)
    assert source.patch_size == 8 and features.shape == (2, 12, 16, 48) and not features.requires_grad
    assert torch.equal(features, model.encode(images))


@pytest.mark.parametrize("name", ["test_vit", "test_vit2", "test_vit3", "test_convnext"])
def test_timm_models_bring_their_mean_std_and_prefix_tokens(name, images, tmp_path):
    torch.manual_seed(0)
    options = {} if "convnext" in name else {"dynamic_img_size": True}
    model = timm.create_model(name, **options).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    source = feature_source(f"timm:{name}@{tmp_path / 'weights.pth'}")
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        tokens = model.forward_features((images / 255 - mean) / std)
        if "vit" in name:
            if isinstance(model.norm, torch.nn.Identity):
                tokens = model.fc_norm(tokens)
            expected = tokens[:, model.num_prefix_tokens :].unflatten(1, (6, 8))
            assert source.patch_size == 16
        else:
            expected = tokens.permute(0, 2, 3, 1)
            assert source.patch_size == 32
    torch.testing.assert_close(source.encode(images), expected, rtol=1e-4, atol=1e-4)


def test_missing_weights_are_explained(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))

    def no_network(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr("socket.create_connection", no_network)
    with pytest.raises(
        InputError, match=r"weights of timm's test_vit are not on this machine \(no route to host\).*run"
    ):
        feature_source("timm:test_vit")
    with pytest.raises(InputError, match="nothing.pth does not exist"):
        feature_source(f"timm:test_vit@{tmp_path / 'nothing.pth'}")
    torch.save({"wrong": torch.zeros(2)}, tmp_path / "wrong.pth")
    with pytest.raises(InputError, match=r"wrong.pth does not hold the weights of timm's test_vit.*cls_token.*patch_"):
        feature_source(f"timm:test_vit@{tmp_path / 'wrong.pth'}")
    with pytest.raises(InputError, match="visualize_vit_base.pth"):
        feature_source(f"mae:{tmp_path / 'mae_visualize_vit_base.pth'}")


def test_unknown_sources_are_answered_with_the_known_ones():
    for name in ("dino", "timm:", "mae:", "siammae"):
        with pytest.raises(InputError, match=f"unknown feature source '{name}'; there are pixels, random"):
            feature_source(name)
    with pytest.raises(InputError, match="timm has no model 'test_vitx'; near it: test_vit"):
        feature_source("timm:test_vitx")


def test_the_architecture_of_public_weights_follows_from_their_name():
    for file, default, expected in (
        ("mae_pretrain_vit_large.pth", "base", "mae_vit_large_patch16"),
        ("mae_visualize_vit_huge.pth", "base", "mae_vit_huge_patch14"),
        ("other.pth", "base", "mae_vit_base_patch16"),
        ("other.pth", "large", "mae_vit_large_patch16"),
    ):
        assert architecture(file, ARCHITECTURES, default) == expected


def test_centred_features_have_no_mean_in_any_frame(images):
    plain, other = feature_source("pixels"), centred(feature_source("pixels"))
    features = other.encode(images)
    assert features.mean((1, 2)).abs().max() < 1e-5 and other.name == "centred:pixels"
    apart = plain.encode(images)
    assert torch.allclose(features[1, 2, 3] - features[1, 0, 0], apart[1, 2, 3] - apart[1, 0, 0], atol=1e-5)
    with pytest.raises(InputError, match="centring compares features by cosines"):
        centred(replace(plain, affinity=torch.add))


def test_what_identifies_weights(tmp_path):
    model = MaskedAutoencoderViT(48, 8, 48, 1, 4, decoder_embed_dim=32, decoder_depth=1, decoder_num_heads=4)
    (tmp_path / "file").write_bytes(b"abc")
    known = "sha256 ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert model_source("m", model, file=tmp_path / "file").weights == known
    before = model_source("m", model).weights
    assert before == model_source("m", model).weights
    with torch.no_grad():
        model.patch_embed.proj.bias[3] += 1
    assert model_source("m", model).weights != before
