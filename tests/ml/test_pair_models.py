"""The image MAE as the control of a SiamMAE: the same pairs and masks, without f1."""

import pytest
import torch

from common.errors import InputError
from mae.models_mae import MaskedAutoencoderViT
from mae.patches import normalize
from ml.pair_models import ImageMAE
from ml.SiamMAE import MODELS, SiamMAE, build_model

SIZES = dict(img_size=(24, 32), patch_size=8, embed_dim=48, depth=1, num_heads=4)
DECODER = dict(decoder_embed_dim=32, decoder_depth=1, decoder_num_heads=4)


def tiny(**keywords):
    torch.manual_seed(0)
    return ImageMAE(MaskedAutoencoderViT(**SIZES, **DECODER, norm_pix_loss=False), **keywords)


def video(samples=2, frames=3):
    return torch.randint(0, 256, (samples, frames, 3, 24, 32), dtype=torch.uint8)


def test_it_predicts_the_futures_as_mae_does_and_f1_does_not_matter():
    model, pairs = tiny(mask_ratio=0.5), video()
    noise = torch.rand(4, 12)
    loss, prediction, mask = model(pairs, noise=noise)
    expected = model.mae(pairs[:, 1:].flatten(0, 1), 0.5, noise=noise)
    for found, wanted in zip((loss, prediction, mask), expected, strict=True):
        torch.testing.assert_close(found, wanted)
    other = torch.cat([255 - pairs[:, :1], pairs[:, 1:]], dim=1)
    assert torch.equal(model(other, noise=noise)[1], prediction)


def test_its_masks_and_targets_are_those_of_a_siamese_model():
    siamese = SiamMAE(MaskedAutoencoderViT(**SIZES, norm_pix_loss=False), 0.75, decoder_size=(32, 1, 4))
    model, pairs, seeds = tiny(mask_ratio=0.75), video(), torch.tensor([3, 4])
    assert torch.equal(model(pairs, seeds=seeds)[2], siamese(pairs, seeds=seeds)[2])
    assert torch.equal(model.target(normalize(pairs)), siamese.target(normalize(pairs)))


def test_it_is_built_again_and_its_weights_are_public():
    model = build_model("mae_micro_patch8", mask_ratio=0.6, norm_pix_loss=False, decoder_depth=1)
    again = build_model(model.config)
    again.load_state_dict(model.state_dict())
    assert again.config == model.config and (again.mask_ratio, again.norm_pix_loss) == (0.6, False)
    names = {name.removeprefix("mae.") for name in model.state_dict()}
    assert {"cls_token", "decoder_pred.weight", "decoder_blocks.0.attn.qkv.weight"} <= names
    assert "decoder_blocks.1.attn.qkv.weight" not in names
    with pytest.raises(InputError, match="model of images"):
        build_model("mae_micro_patch8", mask_kind="tube")
    assert "mae_base_patch16" in MODELS
