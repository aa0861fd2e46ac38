"""SiamMAE: what begins as MAE, and what its attention is. What it promises as all models do is in `test_contract`."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from common.errors import InputError
from mae.models_mae import ARCHITECTURES, MAEEncoder, MaskedAutoencoderViT
from mae.patches import normalize
from ml.checkpoints import save_checkpoint
from ml.decoders import CrossAttention, rotary_positions
from ml.SiamMAE import CrossDecoder, SiamMAE, build_model, prepare_model

ENCODER = dict(img_size=(24, 32), patch_size=8, embed_dim=48, depth=2, num_heads=4)  # a grid of 3×4, nothing square
GOLDEN = Path(__file__).parents[1] / "golden" / "mae_tiny.safetensors"


def tiny(encoder_kind="siamese", decoder_kind="cross-self", mask_ratio=0.75, **kw):
    torch.manual_seed(0)
    kinds = dict(encoder_kind=encoder_kind, decoder_kind=decoder_kind)
    return perturbed(SiamMAE(MAEEncoder(**ENCODER), mask_ratio, **kinds, decoder_size=(32, 2, 4), **kw))


def perturbed(model):
    """Every parameter moved, so that nothing is zero by its initialisation."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def test_around_maes_decoder_it_begins_as_mae():
    """Cross-attention joins with an output of zero: with the same noise, f2's prediction is MAE's."""
    golden = load_file(GOLDEN)
    decoder = dict(decoder_embed_dim=32, decoder_depth=2, decoder_num_heads=4)
    mae = MaskedAutoencoderViT(48, 8, 48, 3, 4, **decoder, norm_pix_loss=False)
    mae.load_state_dict({k.removeprefix("state."): v for k, v in golden.items() if k.startswith("state.")})
    model = SiamMAE(mae, 0.75, pretrained_decoder=True)
    video = torch.rand(3, 2, 3, 48, 48)
    expected_loss, expected, expected_mask = mae(video[:, 1], 0.75, noise=golden["noise"])
    loss, prediction, mask = model(video, noise=golden["noise"])
    torch.testing.assert_close(prediction, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(loss, expected_loss, rtol=0, atol=1e-6)
    assert torch.equal(mask, expected_mask) and model.norm_pix_loss is False
    loss.backward()  # and it can leave that start: the zeros have a gradient
    assert all(block.cross.proj.weight.grad.any() for block in model.decoder.blocks)
    for kind in ("cross", "joint", "rotary"):  # what these kinds keep of the weights
        part = CrossDecoder.around(mae, kind)
        (kept,) = (v for k, v in part.state_dict().items() if re.fullmatch(r"blocks\.1\.(block\.)?mlp\.fc1\.weight", k))
        assert torch.equal(kept, mae.decoder_blocks[1].mlp.fc1.weight)
        assert torch.equal(part.pred.weight, mae.decoder_pred.weight)


@torch.no_grad()
def test_public_weights_bring_their_decoder_along(tmp_path):
    """`mae_visualize_*` has a decoder, around which SiamMAE's is built; `mae_pretrain_*` has none: a new one."""
    mae = perturbed(ARCHITECTURES["mae_vit_tiny_patch16"](norm_pix_loss=False))
    torch.save({"model": mae.state_dict()}, tmp_path / "mae_visualize_vit_tiny.pth")
    model = build_model("siammae_tiny_patch16", weights=str(tmp_path / "mae_visualize_vit_tiny.pth"), mask_ratio=0.9)
    video, noise = torch.rand(1, 2, 3, 224, 224), torch.rand(1, 196)
    torch.testing.assert_close(model(video, noise=noise)[1], mae(video[:, 1], 0.9, noise=noise)[1], rtol=0, atol=1e-5)
    assert model.norm_pix_loss is False and model.config["norm_pix_loss"] is False
    state = {key: value for key, value in mae.state_dict().items() if "decoder" not in key and key != "mask_token"}
    torch.save({"model": state}, tmp_path / "mae_pretrain_vit_tiny.pth")
    model = build_model("siammae_tiny_patch16", weights=str(tmp_path / "mae_pretrain_vit_tiny.pth"))
    assert model.norm_pix_loss and model.decoder.blocks[0].cross.proj.weight.any()
    assert torch.equal(model.encoder.norm.weight, mae.norm.weight)


def test_the_decoder_equals_attention_written_out():
    """One cross-self block against torch's own multi-head attention, with our weights."""
    model = tiny()
    block = model.decoder.blocks[0].eval()
    x, memory = torch.randn(2, 13, 32), torch.randn(2, 9, 32)

    def attention(q, k, v, projection, queries, keys):
        mha = torch.nn.MultiheadAttention(32, 4, batch_first=True)
        mha.in_proj_weight.data, mha.in_proj_bias.data = torch.cat([q[0], k[0], v[0]]), torch.cat([q[1], k[1], v[1]])
        mha.out_proj.load_state_dict(projection.state_dict())
        return mha(queries, keys, keys, need_weights=False)[0]

    def split(linear, parts):
        return list(zip(linear.weight.chunk(parts), linear.bias.chunk(parts), strict=True))

    with torch.no_grad():
        cross = block.cross
        y = x + attention(*split(cross.q, 1), *split(cross.kv, 2), cross.proj, block.cross_norm(x), memory)
        normed = block.block.norm1(y)
        y = y + attention(*split(block.block.attn.qkv, 3), block.block.attn.proj, normed, normed)
        y = y + block.block.mlp(block.block.norm2(y))
        torch.testing.assert_close(block(x, memory), y, rtol=1e-5, atol=1e-5)


def test_rotary_attention_depends_on_how_far_apart_places_are():
    """Against complex numbers: pair j of a head is turned by row · rate_j, or by column · rate_j in the second half;
    what is found is turned by how far away it was."""
    (h, w), heads, dim = (3, 5), 2, 16
    cross = CrossAttention(heads * dim, heads)
    x, memory = torch.randn(2, 1 + h * w, heads * dim), torch.randn(1, 1 + h * w, heads * dim)  # two futures of a past
    rotary = rotary_positions(dim, (h, w), x.device)
    rates = torch.pi / 2 * 16.0 ** (-torch.arange(dim // 4) / (dim // 4 - 1))
    places = [(0, 0), *((row, column) for row in range(h) for column in range(w))]  # the class token is not turned
    angle = torch.stack([torch.cat([row * rates, column * rates]) for row, column in places])  # [1 + N, dim / 2]
    away = angle.repeat(2, 1)[:, None] - angle[None]
    turns = torch.polar(torch.ones_like(away), away)  # [2 · (1 + N), 1 + N, dim / 2]
    with torch.no_grad():
        q, k, _ = cross.heads(x, memory, rotary)
        plain = cross.heads(x, memory)
        pairs = [torch.view_as_complex(y.unflatten(-1, (-1, 2)).contiguous()) for y in plain]
        products = (pairs[0][:, :, :, None] * pairs[1][:, :, None].conj() * turns).real.sum(-1)
        torch.testing.assert_close(q @ k.mT, products, rtol=0, atol=1e-5)
        weights = (products / dim**0.5).softmax(-1)
        found = torch.view_as_real((weights[..., None] * pairs[2][:, :, None] * turns.conj()).sum(3)).flatten(-2)
        expected = cross.proj(found.transpose(1, 2).reshape(x.shape))
        torch.testing.assert_close(cross(x, memory, rotary), expected, rtol=0, atol=1e-5)


def test_a_rotary_decoder_begins_with_the_weights_of_a_cross_self_one(tmp_path):
    """Where nothing turns queries and keys, both predict the same; a decoder of other parts begins anew."""
    trained = tiny()
    save_checkpoint(
        tmp_path / "a.pt", dict(model=trained.state_dict(), config=trained.config, epoch=1, step=1, run="r")
    )
    mae = prepare_model(tmp_path / "a.pt", None)
    rotary = SiamMAE(mae, 0.75, decoder_kind="rotary")
    video, noise = torch.rand(2, 2, 3, 24, 32), torch.rand(2, 12)
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        assert not torch.equal(rotary(video, noise=noise)[1], trained(video, noise=noise)[1])
        still = torch.cat([torch.zeros(13, 8), torch.ones(13, 8)], dim=-1)
        patch.setattr("ml.decoders.rotary_positions", lambda *_: still)
        torch.testing.assert_close(rotary(video, noise=noise)[1], trained(video, noise=noise)[1], rtol=0, atol=1e-5)
    other = SiamMAE(mae, 0.75, decoder_kind="cross", decoder_size=(32, 2, 4))
    assert not torch.equal(other.decoder.pred.weight, trained.decoder.pred.weight)


def test_a_siamese_f1_does_not_depend_on_f2_and_a_joint_one_does():
    video = torch.rand(1, 2, 3, 24, 32)
    past, future = normalize(video).unbind(1)
    keep = torch.tensor([[0, 5, 7]])
    for kind, equal in [("siamese", True), ("joint", False)]:
        model = tiny(kind)
        with torch.no_grad():
            one, other = (model.encode_pair(past, f, keep)[0] for f in (future, -future))
        assert torch.equal(one, other) is equal


def test_bad_input_is_named():
    with pytest.raises(InputError, match="cross-self, cross, joint, rotary"):
        tiny(decoder_kind="both")
    with pytest.raises(InputError, match="siamese, joint"):
        tiny(encoder_kind="both")
    for size in ((24, 2, 4), (32, 2, 5)):
        with pytest.raises(InputError, match=f"{size[0]} wide with {size[2]} heads cannot be rotary"):
            SiamMAE(MAEEncoder(**ENCODER), decoder_kind="rotary", decoder_size=size)
