"""MAE-ST against recorded outputs of the public code, and what it costs, counted."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from common.errors import InputError
from mae import models_mae_st
from mae.masking import clip_masking
from mae.models_mae import MAEEncoder, MaskedAutoencoderViT
from mae.models_mae_st import ARCHITECTURES_ST, SpatiotemporalMAE, fuse_qkv, inflate
from mae.patches import masked_loss, normalize, patchify, patchify_clip
from mae.weights import load_pretrained_st
from tests.mae.small_st import TINY, TINY48, close, recorded, small

FRAMES = {"mae_st_tiny": 8, "mae_st_16frames": 16}


@torch.no_grad()
@pytest.mark.parametrize(("name", "frames"), FRAMES.items())
def test_equals_the_public_mae_st(name, frames):
    figures, state = recorded(name)
    model = SpatiotemporalMAE(**{**TINY, "num_frames": frames}, norm_pix_loss=False).eval()
    model.load_state_dict(fuse_qkv(state))
    pixels = figures["clip"].transpose(1, 2)  # public clips are [B, 3, F, H, W]
    latent, mask, ids_restore = model.forward_encoder(pixels, noise=figures["noise"])
    close(latent, figures["latent_90"])
    assert torch.equal(mask, figures["mask_90"]) and torch.equal(ids_restore, figures["ids_restore_90"])
    prediction = model.forward_decoder(latent, ids_restore, frames // 2, (4, 4))
    close(prediction, figures["pred_90"])
    close(model.patchify(pixels), figures["patches"])
    close(model.unpatchify(figures["patches"]), pixels)
    close(masked_loss(prediction, model.target(pixels), mask), figures["loss_90"].squeeze())
    model.norm_pix_loss = True
    close(masked_loss(prediction, model.target(pixels), mask), figures["loss_90_norm_pix"].squeeze())


@torch.no_grad()
@pytest.mark.parametrize("kind", ["own", "public file"])
def test_pixels_are_normalised_as_the_public_weights_were_trained(arch, kind, tmp_path):
    """mae_st, util/kinetics.py: (x / 255 − 0.45) / 0.225, for clips and for images."""
    figures, state = recorded("mae_st_tiny")
    if kind == "own":
        model = SpatiotemporalMAE(**TINY)
        model.load_state_dict(fuse_qkv(state))
    else:
        torch.save({"model_state": state}, tmp_path / "mae_pretrain_vit_large_k400.pth")
        model = load_pretrained_st(tmp_path, arch)
    clip = torch.randint(0, 256, (2, 8, 3, 32, 32), dtype=torch.uint8)
    pixels = (clip.float() / 255 - 0.45) / 0.225
    expected = model.eval().forward_encoder(pixels, noise=figures["noise"])[0]
    seen = []
    model.norm.register_forward_hook(lambda module, inputs, output: seen.append(output[:, 1:]))
    loss, prediction, mask = model(clip, noise=figures["noise"])
    close(seen[0], expected)
    close(loss, masked_loss(prediction, model.target(pixels), mask))
    still = pixels[:, :1].expand(-1, 8, -1, -1, -1)
    model.mask_ratio = 0.0
    latent, _, ids_restore = model.forward_encoder(still)
    in_order = latent.gather(1, ids_restore[..., None].expand_as(latent)).unflatten(1, (4, 4, 4))
    close(model.encode(clip[:, 0]), in_order.mean(1))
    close(model.denormalize(pixels), clip / 255)


@pytest.mark.parametrize("statistics", [{}, dict(pixel_mean=(0.1, 0.2, 0.3), pixel_std=(0.4, 0.5, 0.6))])
def test_pixels_survive_patches_and_the_models_normalising(statistics):
    model = small(**statistics, pred_t_dim=6)
    clip = torch.randint(0, 256, (2, 6, 3, 16, 24), dtype=torch.uint8)
    back = model.denormalize(model.unpatchify(model.patchify(model.pixels(clip))))
    assert torch.equal((255 * back).round().to(torch.uint8), clip)
    assert not torch.allclose(model.pixels(clip), normalize(clip), atol=1e-3)


def test_the_predicted_frames():
    """16 → 8 as the public code has them; each frame lies within its own step, whatever the numbers."""
    with torch.device("meta"):
        large = ARCHITECTURES_ST["mae_st_vit_large_patch16"]()
    assert large.predicted_frames(16) == [0, 2, 4, 6, 8, 10, 12, 15]
    for t in (1, 2, 3, 4):
        for steps in (1, 2, 3, 5, 8):
            for u in range(1, t + 1):
                sizes = dict(num_frames=t * steps, t_patch_size=t, pred_t_dim=u * steps)
                model = SpatiotemporalMAE(**{**TINY, **sizes, "depth": 0, "decoder_depth": 0})
                frames = model.predicted_frames(t * steps)
                assert frames == torch.linspace(0, t * steps - 1, u * steps).long().tolist()
                assert [f // t for f in frames] == [n // u for n in range(u * steps)], (t, steps, u)
    for wrong in (0, 3, 12):
        with pytest.raises(InputError, match=f"pred_t_dim is {wrong}; .*multiple of 4 up to 8"):
            SpatiotemporalMAE(**{**TINY, "pred_t_dim": wrong})


def test_a_tubelet_is_embedded_as_the_convolution_would():
    """With the weights of the public Conv3d, on a grid that is not square and an odd number of steps."""
    model, pixels = small(), torch.randn(2, 6, 3, 16, 24)
    convolved = model.patch_embed.proj(pixels.transpose(1, 2)).flatten(2).transpose(1, 2)  # [B, T·h·w, D]
    for T in range(3):
        for place in range(6):
            n = T * 6 + place
            position = model.pos_embed_temporal[0, T] + model.pos_embed_spatial[0, place]
            close(model.tokens(pixels)[:, 1 + n], convolved[:, n] + position)
    ids_keep = torch.tensor([[3, 17, 0], [5, 11, 6]])
    kept, everything = model.tokens(pixels, ids_keep), model.tokens(pixels)
    close(kept[:, :1], (model.cls_token + model.pos_embed_class).expand(2, -1, -1))
    for b in range(2):
        close(kept[b, 1:], everything[b, 1 + ids_keep[b]])


def test_a_clip_of_one_frame_is_an_image():
    images = torch.randn(2, 3, 16, 24)
    assert torch.equal(patchify_clip(images[:, None], 8, 1), patchify(images, 8))


def test_positions_stay_with_their_places_when_interpolated():
    model = small()
    spatial = model.pos_embed_spatial.data = torch.zeros_like(model.pos_embed_spatial)
    spatial[0, :, 0] = torch.tensor([0.0, 0, 0, 1, 1, 1])  # the row
    spatial[0, :, 1] = torch.tensor([0.0, 1, 2, 0, 1, 2])  # the column
    model.pos_embed_temporal.data.zero_()[0, :, 2] = torch.tensor([0.0, 1, 2])  # the step
    same = model.positions("pos_embed", 3, (2, 3))
    for n in range(18):
        assert same[n, :3].tolist() == [n // 3 % 2, n % 3, n // 6]
    row, column, step = model.positions("pos_embed", 6, (4, 6)).unflatten(0, (6, 4, 6))[..., :3].unbind(-1)
    close(step[:, 0, 0], torch.tensor([0, 0.25, 0.75, 1.25, 1.75, 2]))  # each step became two
    assert (step == step[:, :1, :1]).all() and torch.equal(row[0], row[5]) and torch.equal(column[0], column[5])
    assert (row[0].diff(dim=0) > 0).any() and (row[0] - row[0, :, :1]).abs().max() < 1e-6
    assert (column[0].diff(dim=1)[:, 1:4] > 0.2).all() and (column[0] - column[0, :1]).abs().max() < 1e-6


@torch.no_grad()
def test_a_still_clip_of_one_tubelet_gives_the_image_models_features():
    torch.manual_seed(0)
    for mae in (
        MAEEncoder(img_size=(24, 32), patch_size=8, embed_dim=48, depth=3, num_heads=4),
        MaskedAutoencoderViT(**{**TINY48, "norm_pix_loss": False}),
    ):
        for parameter in mae.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
        images = torch.randint(0, 256, (2, 3, 24, 32), dtype=torch.uint8)
        expected = mae.eval().encode(images)
        for t in (1, 2, 3):
            model = inflate(mae, num_frames=4 * t, t_patch_size=t, pred_t_dim=4, decoder_embed_dim=32, mask_ratio=0.8)
            model.eval()
            close(model.encode(images, steps=1), expected, atol=4e-6 * expected.abs().max().item())
            assert not model.pos_embed_temporal.any() and model.mask_ratio == 0.8 and model.grid == mae.grid
            model.train()(images[:, None].expand(-1, 4 * t, -1, -1, -1))  # and it can be trained
    larger = inflate(mae, img_size=(24, 32))  # positions interpolated once
    close(larger.encode(images, steps=1), expected, atol=1e-5)
    close(larger.normalize(images), normalize(images), atol=0)  # as the image model was trained
    with pytest.raises(InputError, match="patch_size, pixel_std of an inflated model"):
        inflate(mae, patch_size=4, pixel_std=(1, 1, 1))


@torch.no_grad()
def test_encode_averages_over_time():
    model, images = small(), torch.rand(2, 3, 16, 24)
    still = images[:, None].expand(-1, 6, -1, -1, -1)
    close(model.encode(images), model.encode_clip(still).mean(1))
    assert model.encode_clip(torch.rand(1, 10, 3, 8, 40)).shape == (1, 5, 1, 5, 48)
    one, three = model.encode(images, steps=1), model.encode(images, steps=3)
    assert one.shape == three.shape == (2, 2, 3, 48) and not torch.allclose(one, three, atol=1e-3)


@pytest.mark.parametrize("name", ARCHITECTURES_ST)
def test_named_sizes(name):
    with torch.device("meta"):
        model = ARCHITECTURES_ST[name]()
    millions = sum(p.numel() for n, p in model.named_parameters() if not n.startswith(("decoder", "mask"))) / 1e6
    expected = {"small": 21.96, "base": 86.4, "large": 304.1, "huge": 631.7}
    assert millions == pytest.approx(expected[name.split("_")[3]], rel=0.002)
    assert (model.num_frames, model.steps, model.grid, model.mask_ratio) == (16, 8, (14, 14), 0.9)
    assert len(model.decoder_blocks) == 4 and model.decoder_blocks[0].attn.num_heads == 16
    assert model.decoder_pred.out_features == 16 * 16 * 3 and model.patch_embed.proj.kernel_size == (2, 16, 16)
    assert models_mae_st.vit_large_patch16 is models_mae_st.mae_st_vit_large_patch16


def test_nothing_to_predict_is_said():
    for kw in (dict(mask_ratio=0.0), dict(num_frames=2, pred_t_dim=1, mask_kind="frame")):
        model = small(**kw)
        with pytest.raises(InputError, match="stay visible, and nothing is left to predict"):
            model(torch.rand(1, model.num_frames, 3, 16, 24))
    with pytest.raises(InputError, match="7 frames does not divide into tubelets of 2 frames"):
        small()(torch.rand(1, 7, 3, 16, 24))
    with pytest.raises(InputError, match="agnostic, tube"):
        small(mask_kind="cube")


class Operators(TorchDispatchMode):
    """Counts what is called, forward and backward."""

    def __init__(self):
        super().__init__()
        self.calls = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls[str(function).removeprefix("aten.").split(".")[0]] += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("mask_ratio", [0.5, 0.75, 0.9, 0.95])
@pytest.mark.parametrize("kind", ["agnostic", "tube", "prospective"])
def test_no_more_arithmetic_than_needed(kind, mask_ratio):
    """Matrix products outside of attention, counted: what the definition asks for, and at most 1 % beyond.

    Each linear map multiplies its rows once forward and twice backward; but for the pixels, which want no gradient.
    """
    model = small(mask_kind=kind, mask_ratio=mask_ratio).train()
    video, B, N, D, d, P = torch.randint(0, 256, (3, 6, 3, 16, 24), dtype=torch.uint8), 3, 18, 48, 32, 192
    K = clip_masking(torch.rand(1, N), mask_ratio, 3, kind)[0].shape[1]
    with FlopCounterMode(display=False) as counter:
        model(video, seeds=torch.arange(B))[0].backward()
    counted = {str(op): flops for op, flops in counter.get_flop_counts()["Global"].items()}
    counted = sum(flops for op, flops in counted.items() if "attention" not in op)
    blocks = 2 * (1 + K) * 12 * D * D + 2 * (1 + N) * 12 * d * d  # qkv 3, projection 1, MLP 8 squares of the width
    least = 2 * B * (2 * K * (3 * 2 * 64) * D + 3 * (blocks + K * D * d + N * d * P))
    assert least <= counted <= 1.01 * least

    def operators(model, B):
        model.zero_grad()
        with Operators() as seen:
            video = torch.randint(0, 256, (B, 6, 3, 16, 24), dtype=torch.uint8)
            model(video, seeds=torch.arange(B))[0].backward()
        return seen.calls

    calls = operators(model, B)
    products = sum(calls[name] for name in ("mm", "addmm", "bmm", "baddbmm", "matmul", "einsum"))
    linear = 4 * 4 + 3  # four in each of four blocks; embedding, decoder's embedding, prediction
    assert products == 3 * linear - 1
    attention = [name for name in calls if "scaled_dot_product" in name]
    assert len(attention) == 2 and all(calls[name] == 4 for name in attention)  # forward and backward, fused
    assert not any("softmax" in name or "dropout" in name or "conv" in name for name in calls)
    assert operators(model, 5) == calls  # nothing loops over samples


def saved_bytes(model, video):
    """What the forward pass keeps for the backward pass, apart from the weights: bytes of distinct storages."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(video, seeds=torch.arange(len(video)))[0]
    assert loss.requires_grad
    return sum(kept.values())


def test_memory_follows_what_is_visible():
    """Activations are counted, not measured: the encoder's are those of the visible tubelets alone."""
    sizes = dict(TINY, img_size=(48, 64), embed_dim=96, depth=6, decoder_depth=1)
    video = torch.randint(0, 256, (2, 8, 3, 48, 64), dtype=torch.uint8)
    bytes_at = {}
    for mask_ratio in (0.5, 0.9):
        model = SpatiotemporalMAE(**sizes, mask_ratio=mask_ratio).train()
        bytes_at[mask_ratio] = saved_bytes(model, video)
    tokens = {ratio: 2 * int(192 * (1 - ratio) + 1e-6) for ratio in bytes_at}
    per_token = (bytes_at[0.5] - bytes_at[0.9]) / (tokens[0.5] - tokens[0.9])
    widths = 6 * (2 + 3 + 1 + 1 + 2 + 4 + 4) * 96 * 4  # two norms and inputs, qkv, attention, its projection, MLP twice
    assert 0.8 * widths < per_token < 1.5 * widths
    model = SpatiotemporalMAE(**sizes, mask_ratio=0.9, checkpointing=True).train()
    assert saved_bytes(model, video) < 0.5 * bytes_at[0.9]
