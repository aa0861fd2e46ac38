"""Folders as Transformers and timm write them: the same features here as there, for each kind that is read."""

import json

import pytest
import timm
import torch
from safetensors.torch import save_file

from common.errors import InputError
from mae.formats import load
from mae.formats.folding import as_mae
from mae.patches import IMAGENET_MEAN, IMAGENET_STD

HALF, IMAGENET = ((0.5,) * 3, (0.5,) * 3), (IMAGENET_MEAN, IMAGENET_STD)
SIZES = dict(hidden_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=48, patch_size=8)
close = dict(rtol=0, atol=1e-5)


def shaken(model):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


def pixels(images, mean, std):
    return (images / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


# kind, more of its configuration, tokens before the patches, preprocessor, statistics
TRANSFORMERS = {
    "ViT": ("ViT", {}, 1, None, IMAGENET),
    "own statistics": ("ViT", {}, 1, dict(image_mean=[0.5] * 3, image_std=[0.5] * 3), HALF),
    "not normalised": ("ViT", {}, 1, dict(image_mean=[0.5] * 3, do_normalize=False), ((0.0,) * 3, (1.0,) * 3)),
    "no class token": ("IJepa", {}, 0, None, IMAGENET),
    "DINOv2": ("Dinov2", {}, 1, None, IMAGENET),
    "gated": ("Dinov2", dict(use_swiglu_ffn=True), 1, None, IMAGENET),
    "registers": ("Dinov2WithRegisters", dict(num_register_tokens=4), 5, None, IMAGENET),
}


@pytest.mark.parametrize("name", TRANSFORMERS)
@torch.no_grad()
def test_transformers(name, tmp_path):
    transformers = pytest.importorskip("transformers")
    kind, more, prefix, preprocessor, statistics = TRANSFORMERS[name]
    keywords = {} if "Dinov2" in kind else {"interpolate_pos_encoding": True}
    model = shaken(getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**SIZES, **more)))
    model.save_pretrained(tmp_path)
    if preprocessor:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    images = torch.randint(0, 256, (2, 3, 40, 64), dtype=torch.uint8)
    expected = model(pixels(images, *statistics), **keywords).last_hidden_state[:, prefix:].unflatten(1, (5, 8))
    torch.testing.assert_close(load(tmp_path).encoder.encode(images), expected, **close)


@torch.no_grad()
@pytest.mark.parametrize("pooled", [False, True])
def test_videomae_of_transformers(pooled, tmp_path):
    """With positions of the flattened clip, and a final norm only where patches are not pooled."""
    transformers = pytest.importorskip("transformers")
    config = transformers.VideoMAEConfig(**SIZES, num_frames=4, use_mean_pooling=pooled)
    model = shaken(transformers.VideoMAEModel(config))
    model.save_pretrained(tmp_path)
    loaded, images = load(tmp_path), torch.randint(0, 256, (1, 3, 48, 48), dtype=torch.uint8)
    still = pixels(images, *IMAGENET)[:, None].expand(-1, 4, -1, -1, -1)
    expected = model(still).last_hidden_state.unflatten(1, (2, 6, 6)).mean(1)
    torch.testing.assert_close(loaded.encoder.encode(images), expected, **close)
    assert ("a final norm is added" in as_mae(loaded)[1]) == pooled


def test_other_kinds_of_transformers_are_named(tmp_path):
    transformers = pytest.importorskip("transformers")
    model = transformers.ViTModel(transformers.ViTConfig(**SIZES, hidden_act="quick_gelu"))
    model.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="of kind 'vit' with activation 'quick_gelu'; read are .* with gelu: vit, vit"):
        load(tmp_path)


def timm_folder(folder, architecture, config=None, **sizes):
    """A folder as on the hub; config: what stands in place of the `pretrained_cfg`."""
    sizes = dict(img_size=48, patch_size=8, embed_dim=48, depth=2, num_heads=4, **sizes)
    model = shaken(timm.create_model(architecture, num_classes=7, dynamic_img_size=True, **sizes))
    save_file(model.state_dict(), folder / "model.safetensors", {"format": "pt"})
    known = {k: model.pretrained_cfg[k] for k in ("mean", "std")}
    about = dict(architecture=architecture, num_classes=7, model_args=sizes)
    about |= dict(pretrained_cfg=known) if config is None else config
    (folder / "config.json").write_text(json.dumps(about))
    return model, known


@pytest.mark.parametrize(
    ("architecture", "sizes", "config", "through_timm"),
    [
        ("vit_small_patch16_224", {}, None, False),
        ("vit_small_patch16_224", {}, {}, False),  # timm's own default is ImageNet's mean and std
        ("vit_small_patch16_224", {}, {"mean": [0.4] * 3, "std": [0.3] * 3}, False),  # as timm wrote it before
        ("vit_small_patch16_224", dict(global_pool="avg"), None, False),  # its final norm is fc_norm
        ("vit_small_patch14_reg4_dinov2", {}, None, False),
        ("vit_base_patch16_clip_quickgelu_224", {}, None, True),
        ("vit_base_patch16_siglip_224", {}, None, True),
        ("vit_small_patch16_dinov3", {}, None, True),
    ],
)
@torch.no_grad()
def test_timm(architecture, sizes, config, through_timm, tmp_path):
    model, statistics = timm_folder(tmp_path, architecture, config, **sizes)
    if config is not None:
        statistics = config or dict(mean=IMAGENET_MEAN, std=IMAGENET_STD)
    images = torch.randint(0, 256, (2, 3, 40, 64), dtype=torch.uint8)
    (expected,) = model.forward_intermediates(
        pixels(images, **statistics), indices=1, norm=True, output_fmt="NCHW", intermediates_only=True
    )
    expected = model.fc_norm(expected.permute(0, 2, 3, 1))
    loaded = load(tmp_path)
    torch.testing.assert_close(loaded.encoder.encode(images), expected, **close)
    if through_timm:
        with pytest.raises(InputError, match="no plain vision transformer: it can be evaluated"):
            as_mae(loaded)


@torch.no_grad()
def test_a_grid_that_only_the_configuration_tells(tmp_path):
    """24 places and a class token are 5·5 as well."""
    model, statistics = timm_folder(tmp_path, "vit_small_patch16_224")
    wide = timm.create_model(
        "vit_small_patch16_224", img_size=(32, 48), patch_size=8, embed_dim=48, depth=2, num_heads=4
    )
    state = {**model.state_dict(), "pos_embed": shaken(wide).pos_embed.data}
    save_file(state, tmp_path / "model.safetensors")
    about = json.loads((tmp_path / "config.json").read_text())
    about["pretrained_cfg"]["input_size"] = [3, 32, 48]
    del about["model_args"]["img_size"]
    (tmp_path / "config.json").write_text(json.dumps(about))
    assert load(tmp_path).encoder.grid == (4, 6)
