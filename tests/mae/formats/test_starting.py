"""Models that start from other projects' weights: folding keeps the features, decoders keep the predictions."""

import pytest
import torch

from common.errors import InputError
from mae.formats import load
from mae.formats.folding import as_mae
from mae.models_mae import ARCHITECTURES, MaskedAutoencoderViT
from mae.weights import load_pretrained
from ml.SiamMAE import CrossDecoder, SiamMAE, build_model

close = dict(rtol=0, atol=5e-5)
EXACT = ["catmae", "cropmae", "dino", "eleander_siammae", "hf_vitmae", "rsp", "tobo"]


@pytest.mark.parametrize("name", [*EXACT, "timm_vit", "tcore", "mae3d", "videomae"])
@torch.no_grad()
def test_our_encoder_takes_every_encoder(golden, tmp_path, name):
    recorded = golden(name)
    loaded = load(recorded.write(tmp_path), num_heads=recorded.num_heads)
    own, differences = as_mae(loaded)
    size = next(k for k in recorded.tensors if k.startswith(("images_", "clip")))
    images = recorded.video(size) if size != "clip" else recorded.video("clip")[0, :2]
    square = images[..., : own.grid[0] * own.patch_size, : own.grid[1] * own.patch_size]
    if square.shape[-2] == own.grid[0] * own.patch_size == square.shape[-1]:  # no positions are interpolated
        theirs = loaded.encoder.encode(square)
        assert torch.allclose(own.encode(square), theirs, **close) == (name in EXACT)
    assert bool(differences) == (name not in EXACT)
    assert own.encode(images).isfinite().all()


@torch.no_grad()
def test_what_is_folded_is_exact(golden, tmp_path):
    """timm's: LayerScale, mean and std 0.5, no position of the class token; its registers cannot be folded."""
    recorded = golden("timm_vit")
    loaded = load(recorded.write(tmp_path), num_heads=4)
    loaded.encoder.reg_token, loaded.encoder.prefix_tokens = None, 1
    own, differences = as_mae(loaded)
    images = recorded.video("images_48x48")
    assert not differences
    torch.testing.assert_close(own.encode(images), loaded.encoder.encode(images), **close)


def test_tokens_over_which_a_norm_works_are_refused(golden, tmp_path):
    with pytest.raises(InputError, match="no plain vision transformer: it can be evaluated"):
        as_mae(load(golden("replicate_siammae").write(tmp_path), num_heads=4))


@pytest.fixture
def tiny(monkeypatch):
    """A named architecture of the goldens' size."""

    def build(**sizes):
        own = dict(patch_size=8, embed_dim=48, depth=2, num_heads=4, decoder_embed_dim=36, decoder_depth=1)
        return lambda **given: MaskedAutoencoderViT(**{**own, "decoder_num_heads": 3, **sizes, **given})

    def name(**sizes):
        monkeypatch.setitem(ARCHITECTURES, "mae_vit_small_patch16", build(**sizes))
        return "mae_vit_small_patch16"

    return name


@torch.no_grad()
def test_tobos_decoder_predicts_what_was_recorded(golden, tmp_path, tiny):
    recorded = golden("tobo")
    tiny()
    path = recorded.write(tmp_path, num_heads=4, decoder_num_heads=3)
    model = build_model("siammae_small_patch16", weights=str(path), mask_ratio=0.9).eval()
    assert model.decoder.size == (24, 2, 3) and model.norm_pix_loss
    loss, prediction, _ = model(recorded.pairs(), noise=recorded["noise"])
    torch.testing.assert_close(prediction, recorded["pred_cross"], **close)
    torch.testing.assert_close(loss, recorded["loss_cross"], **close)


@torch.no_grad()
def test_the_decoder_of_transformers_mae_predicts_what_was_recorded(golden, tmp_path, tiny):
    recorded = golden("hf_vitmae")
    mae = load_pretrained(recorded.write(tmp_path), tiny()).eval()
    loss, prediction, mask = mae(recorded.video("images_48x48"), 0.75, noise=recorded["noise"])
    assert torch.equal(mask, recorded["mask"]) and mae.decoder_is_pretrained
    torch.testing.assert_close(prediction, recorded["pred"], **close)
    torch.testing.assert_close(loss, recorded["loss"], **close)
    assert isinstance(SiamMAE(mae).decoder, CrossDecoder)


@pytest.mark.parametrize("name", ["cropmae", "rsp", "eleander_siammae"])
def test_another_decoder_starts_untrained_and_that_is_said(golden, tmp_path, tiny, capsys, name):
    recorded = golden(name)
    tiny(num_heads=recorded.num_heads, patch_size=recorded.config["patch_size"])
    path = f"{recorded.write(tmp_path)},num_heads={recorded.num_heads}"
    model = build_model("siammae_small_patch16", weights=path)
    said = capsys.readouterr().out
    assert "decoder left out" in said and "the decoder starts untrained" in said
    assert model.decoder.size == (256, 4, 8)
    size = recorded.config["img_size"]
    loss, _, _ = model(torch.randint(0, 256, (1, 2, 3, size, size), dtype=torch.uint8))
    loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_weights_of_another_size_are_named(golden, tmp_path, tiny):
    path = golden("cropmae").write(tmp_path, num_heads=4)
    with pytest.raises(
        InputError, match=r"does not fit the model .*width 48, depth 2, patch 8×8, the model has width 6"
    ):
        load_pretrained(path, tiny(embed_dim=64))
    with pytest.raises(InputError, match="attention of 4 heads, and mae_vit_small_patch16 of 6"):
        load_pretrained(path, tiny(num_heads=6))
