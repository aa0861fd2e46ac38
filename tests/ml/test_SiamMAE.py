"""SiamMAE: who may see what, what begins as MAE, and what each part of PITFALLS 1-8 would break."""

import itertools
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mae.files import InputError
from mae.masking import random_masking
from mae.models_mae import ARCHITECTURES, MAEEncoder, MaskedAutoencoderViT
from mae.patches import normalize, normalize_patches
from ml.SiamMAE import MODELS, CrossDecoder, SiamMAE, build_model

ENCODER = dict(img_size=(24, 32), patch_size=8, embed_dim=48, depth=2, num_heads=4)  # a grid of 3×4, nothing square
KINDS = list(itertools.product(["siamese", "joint"], ["cross-self", "cross", "joint"]))
GOLDEN = Path(__file__).parents[1] / "golden" / "mae_tiny.safetensors"


def tiny(encoder_kind="siamese", decoder_kind="cross-self", mask_ratio=0.75, **kw):
    torch.manual_seed(0)
    model = SiamMAE(
        MAEEncoder(**ENCODER),
        mask_ratio,
        encoder_kind=encoder_kind,
        decoder_kind=decoder_kind,
        decoder_size=(32, 2, 4),
        **kw,
    )
    return perturbed(model)


def perturbed(model):
    """Every parameter moved, so that nothing is zero by its initialisation."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


@pytest.mark.parametrize(("encoder_kind", "decoder_kind"), KINDS)
def test_every_hidden_patch_looks_into_f1_and_none_sees_hidden_pixels(encoder_kind, decoder_kind):
    """PITFALLS 1: mask tokens must attend to f1; nothing of what is to be predicted may leak."""
    model = tiny(encoder_kind, decoder_kind).double()
    video = torch.rand(2, 2, 3, 24, 32, dtype=torch.double, requires_grad=True)
    noise = torch.rand(2, 12, dtype=torch.double)
    # SiamMAE.forward normalises to float32; the same steps in double
    past, future = ((video - 0.5) / 0.25).unbind(1)
    ids_keep, mask, ids_restore = random_masking(noise, 0.75)
    prediction = model.decoder(*model.encode_pair(past, future, ids_keep), ids_restore, (3, 4))
    hidden = mask.bool()
    for b, n in hidden.nonzero().tolist():
        (gradient,) = torch.autograd.grad(prediction[b, n].sum(), video, retain_graph=True)
        to_past, to_future = (model.patchify(g).abs().sum(-1) for g in gradient.unbind(1))
        assert (to_past[b] > 0).all(), "a patch of f1 is not looked at"
        assert not to_future[hidden].any(), "hidden pixels of f2 leak"
        assert to_future[b][~hidden[b]].any() or (decoder_kind == "cross" and encoder_kind == "siamese")
        assert not gradient[1 - b].any(), "samples of a batch see each other"


@pytest.mark.parametrize(("encoder_kind", "decoder_kind"), KINDS)
def test_hidden_pixels_do_not_change_the_prediction_but_f1_does(encoder_kind, decoder_kind):
    model = tiny(encoder_kind, decoder_kind)
    video = torch.randint(0, 256, (2, 2, 3, 24, 32), dtype=torch.uint8)
    seeds = torch.tensor([1, 2])
    _, prediction, mask = model(video, seeds=seeds)
    hidden = model.unpatchify(mask[..., None].expand(-1, -1, 192)).bool()
    other = video.clone()
    other[:, 1][hidden] = 255 - other[:, 1][hidden]
    assert torch.equal(model(other, seeds=seeds)[1], prediction)
    other = video.clone()
    other[:, 0] = other[:, 0].roll(8, -1)
    changed = (model(other, seeds=seeds)[1] - prediction).abs().amax(-1)
    assert (changed[mask.bool()] > 1e-6).all()


@pytest.mark.parametrize(("encoder_kind", "decoder_kind"), KINDS)
def test_every_parameter_gets_a_gradient(encoder_kind, decoder_kind):
    model = tiny(encoder_kind, decoder_kind)
    model(torch.rand(2, 2, 3, 24, 32))[0].backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert without == []


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
    for kind in ("cross", "joint"):  # what these kinds keep of the weights
        part = CrossDecoder.around(mae, kind)
        assert torch.equal(part.blocks[1].mlp.fc1.weight, mae.decoder_blocks[1].mlp.fc1.weight)
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


def test_the_loss_is_the_mean_over_hidden_patches_by_nested_loops():
    model = tiny()
    video = torch.rand(3, 2, 3, 24, 32)
    loss, prediction, mask = model(video, seeds=torch.arange(3))
    target = normalize_patches(model.patchify(normalize(video[:, 1])))
    errors = [
        (prediction[b, n] - target[b, n]).square().mean().item() for b in range(3) for n in range(12) if mask[b, n] == 1
    ]
    assert len(errors) == 27 and loss.item() == pytest.approx(sum(errors) / 27, rel=1e-5)
    halves = [model(video[b : b + 1], seeds=torch.tensor([b]))[0].item() for b in range(3)]
    assert loss.item() == pytest.approx(sum(halves) / 3, rel=1e-5)  # PITFALLS 7: not a matter of the batch's size


def test_plain_pixels_are_another_target():
    assert tiny(norm_pix_loss=True).norm_pix_loss
    model = tiny(norm_pix_loss=False)
    future = normalize(torch.rand(1, 3, 24, 32))
    assert torch.equal(model.target(future), model.patchify(future))


def test_masks_differ_by_sample_and_step_and_repeat_by_seed():
    """PITFALLS 5."""
    model, video = tiny(), torch.rand(2, 2, 3, 24, 32)
    first, second = model(video)[2], model(video)[2]
    assert not torch.equal(first, second) and not torch.equal(first[0], first[1])
    seeds = torch.tensor([5, 6])
    assert torch.equal(model(video, seeds=seeds)[2], model(video, seeds=seeds)[2])
    assert torch.equal(model(video, seeds=seeds)[2][:1], model(video[:1], seeds=seeds[:1])[2])


@pytest.mark.parametrize("encoder_kind", ["siamese", "joint"])
def test_encode_is_the_training_path(encoder_kind):
    """PITFALLS 3: with widths such as 48 and h ≠ w, a shortcut would not even run."""
    model, images = tiny(encoder_kind), torch.rand(2, 3, 24, 32)
    features = model.encode(images)
    assert features.shape == (2, 3, 4, 48)
    pixels = normalize(images)
    past = model.encoder.transform(model.encoder.tokens(pixels))
    torch.testing.assert_close(past[:, 1:].unflatten(1, (3, 4)), features, rtol=0, atol=1e-5)
    ids_keep, _, ids_restore = random_masking(torch.rand(2, 12), 0.0)
    future = model.encoder.transform(model.encoder.tokens(pixels, ids_keep))[:, 1:]
    unshuffled = future.gather(1, ids_restore[..., None].expand(-1, -1, 48))
    torch.testing.assert_close(unshuffled.unflatten(1, (3, 4)), features, rtol=0, atol=1e-5)
    assert model.encode(torch.randint(0, 256, (1, 3, 40, 16), dtype=torch.uint8)).shape == (1, 5, 2, 48)


def test_a_siamese_f1_does_not_depend_on_f2_and_a_joint_one_does():
    video = torch.rand(1, 2, 3, 24, 32)
    past, future = normalize(video).unbind(1)
    keep = torch.tensor([[0, 5, 7]])
    for kind, equal in [("siamese", True), ("joint", False)]:
        model = tiny(kind)
        with torch.no_grad():
            one, other = (model.encode_pair(past, f, keep)[0] for f in (future, -future))
        assert torch.equal(one, other) is equal


def test_another_size_than_trained():
    loss, prediction, mask = tiny()(torch.rand(2, 2, 3, 16, 40))
    assert prediction.shape == (2, 10, 192) and mask.shape == (2, 10) and loss.isfinite()


def test_a_configuration_builds_the_model_again():
    model = tiny("joint", "cross", 0.5)
    again = build_model(model.config)
    again.load_state_dict(model.state_dict())
    video, seeds = torch.rand(1, 2, 3, 24, 32), torch.tensor([3])
    assert torch.equal(model(video, seeds=seeds)[0], again(video, seeds=seeds)[0]) and again.config == model.config


@pytest.mark.parametrize("name", MODELS)
def test_named_models(name):
    with torch.device("meta"):
        model = build_model(name, mask_ratio=0.95)
    expected = {
        "tiny_patch16": (192, (256, 4, 8)), "small_patch16": (384, (256, 4, 8)), "small_patch8": (384, (256, 4, 8)),
        "base_patch16": (768, (512, 8, 16)), "large_patch16": (1024, (512, 8, 16)), "micro_patch8": (128, (128, 2, 4)),
    }  # fmt: skip
    assert (model.encoder.embed_dim, model.decoder.size) == expected[name.removeprefix("siammae_")]
    assert model.norm_pix_loss and model.mask_ratio == 0.95


def test_bad_input_is_named():
    with pytest.raises(InputError, match=r"\[1, 3, 24, 32\].*expected \[B, 2, 3, H, W\]"):
        tiny()(torch.rand(1, 3, 24, 32))
    with pytest.raises(InputError, match="cross-self, cross, joint"):
        tiny(decoder_kind="both")
    with pytest.raises(InputError, match="siamese, joint"):
        tiny(encoder_kind="both")
    with pytest.raises(InputError, match="siammae_small_patch16"):
        build_model("siammae_small")
    with pytest.raises(InputError, match="25×32"):
        tiny()(torch.rand(1, 2, 3, 25, 32))
