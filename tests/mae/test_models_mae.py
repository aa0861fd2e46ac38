"""MAE against recorded outputs of the public code, against `transformers`, and against itself."""

import math
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from common.errors import InputError
from mae.masking import mask_noise, random_masking
from mae.models_mae import ARCHITECTURES, MaskedAutoencoderViT, positions_for
from mae.patches import IMAGENET_MEAN, IMAGENET_STD, denormalize, normalize, normalize_patches, patchify, unpatchify
from mae.positions import sincos_positions
from mae.weights import load_pretrained

GOLDEN = Path(__file__).parents[1] / "golden" / "mae_tiny.safetensors"
DECODER = dict(decoder_embed_dim=32, decoder_depth=2, decoder_num_heads=4)
TINY = dict(img_size=48, patch_size=8, embed_dim=48, depth=3, num_heads=4, **DECODER)


@pytest.fixture(scope="module")
def golden():
    return load_file(GOLDEN)


@pytest.fixture(scope="module")
def golden_model(golden):
    model = MaskedAutoencoderViT(**TINY, norm_pix_loss=False)
    model.load_state_dict({k.removeprefix("state."): v for k, v in golden.items() if k.startswith("state.")})
    return model.eval()


def close(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


@torch.no_grad()
def test_equals_the_public_mae(golden, golden_model):
    latent, mask, ids_restore = golden_model.forward_encoder(golden["imgs"], 0.75, noise=golden["noise"])
    close(latent, golden["latent_75"])
    assert torch.equal(mask, golden["mask_75"]) and torch.equal(ids_restore, golden["ids_restore_75"])
    prediction = golden_model.forward_decoder(latent, ids_restore)
    close(prediction, golden["pred_75"])
    close(golden_model.forward_loss(golden["imgs"], prediction, mask), golden["loss_75"].squeeze())
    close(golden_model.patchify(golden["imgs"]), golden["patches"])
    golden_model.norm_pix_loss = True
    close(golden_model.forward_loss(golden["imgs"], prediction, mask), golden["loss_75_norm_pix"].squeeze())
    golden_model.norm_pix_loss = False
    latent, _, ids_restore = golden_model.forward_encoder(golden["imgs"], 0.0, noise=golden["noise"])
    close(latent, golden["tokens_0_shuffled"])
    assert torch.equal(ids_restore, golden["ids_restore_0"])


@torch.no_grad()
def test_encode_is_the_training_path_at_mask_ratio_0(golden, golden_model):
    frames = denormalize(golden["imgs"]).clamp(0, 1)
    order = golden["ids_restore_0"]
    latent, _, _ = golden_model.forward_encoder(normalize(frames), 0.0, noise=golden["noise"])
    unshuffled = latent[:, 1:].gather(1, order[..., None].expand(-1, -1, 48))
    close(golden_model.encode(frames).flatten(1, 2), unshuffled)


@torch.no_grad()
@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_equals_transformers(norm_pix_loss, tmp_path):
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    encoder = dict(hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=192)
    decoder = {f"decoder_{key}": value for key, value in encoder.items()} | dict(
        decoder_hidden_size=32, decoder_intermediate_size=128
    )
    sizes = dict(image_size=24, patch_size=4, layer_norm_eps=1e-6, mask_ratio=0.75, norm_pix_loss=norm_pix_loss)
    theirs = ViTMAEForPreTraining(ViTMAEConfig(**sizes, **encoder, **decoder)).eval()
    for name, parameter in theirs.named_parameters():  # also those that begin as zeros or ones
        torch.nn.init.normal_(parameter, mean=float("norm" in name and "weight" in name), std=0.1)
    theirs.save_pretrained(tmp_path)
    ours = load_pretrained(tmp_path, None).eval()
    frames, noise = torch.rand(2, 3, 24, 24), torch.rand(2, 36)
    output = theirs(normalize(frames), noise=noise)
    loss, prediction, mask = ours(frames, 0.75, noise=noise)
    assert torch.equal(mask, output.mask) and ours.norm_pix_loss == norm_pix_loss
    close(prediction, output.logits)
    close(loss, output.loss)


def test_patchify_by_nested_loops():
    images = torch.randn(2, 3, 6, 10)
    patches = patchify(images, 2)
    for b in range(2):
        for row in range(3):
            for column in range(5):
                flat = [images[b, c, 2 * row + y, 2 * column + x] for y in range(2) for x in range(2) for c in range(3)]
                assert torch.equal(patches[b, row * 5 + column], torch.stack(flat))
    assert torch.equal(unpatchify(patches, 2, (3, 5)), images)


def test_normalised_patches_have_mean_0_and_variance_1():
    patches = normalize_patches(torch.randn(2, 5, 48) * 3 + 7)
    close(patches.mean(-1), torch.zeros(2, 5))
    torch.testing.assert_close(patches.var(-1), torch.ones(2, 5), rtol=1e-4, atol=1e-4)


def test_uint8_and_float_frames_are_the_same_to_the_model():
    frames = torch.randint(0, 256, (2, 3, 16, 24), dtype=torch.uint8)
    torch.testing.assert_close(normalize(frames), normalize(frames.float() / 255), rtol=0, atol=1e-5)
    torch.testing.assert_close(denormalize(normalize(frames)) * 255, frames.float(), rtol=0, atol=1e-3)


def test_frames_that_were_normalised_already_are_refused():
    with pytest.raises(InputError, match=r"expected \[0, 1\]"):
        normalize(torch.randn(1, 3, 8, 8) * 2)
    with pytest.raises(InputError, match="int64"):
        normalize(torch.zeros(1, 3, 8, 8, dtype=torch.int64))


def test_any_size_that_the_patch_divides(golden_model):
    assert golden_model.encode(torch.rand(2, 3, 40, 72)).shape == (2, 5, 9, 48)
    loss, prediction, mask = golden_model(torch.rand(2, 3, 40, 72))
    assert prediction.shape == (2, 45, 192) and mask.sum(1).tolist() == [34, 34] and loss.isfinite()
    with pytest.raises(InputError, match=r"44×72.*8×8"):
        golden_model.encode(torch.rand(2, 3, 44, 72))


def test_positions_stay_with_their_places_when_interpolated():
    model = MaskedAutoencoderViT(img_size=(32, 64), patch_size=8, embed_dim=32, depth=1, num_heads=2, **DECODER)
    assert torch.equal(model.pos_embed, sincos_positions(32, (4, 8)))
    fine = positions_for(model.pos_embed, (4, 8), (8, 8))
    assert torch.equal(fine[:, :1], model.pos_embed[:, :1])
    columns, rows = fine[0, 1:].unflatten(0, (8, 8)).split(16, dim=-1)
    coarse_columns, coarse_rows = model.pos_embed[0, 1:].unflatten(0, (4, 8)).split(16, dim=-1)
    close(columns[0], coarse_columns[0])  # the columns are as many as before
    assert (rows[:, 0] - coarse_rows[:, 0].repeat_interleave(2, 0)).abs().mean() < 0.1  # each row became two
    assert (rows[:, 0] - rows[:, 7]).abs().max() < 1e-5  # a row's position says nothing of the column


def test_sine_cosine_positions_by_hand():
    """MAE's formula, one number after the other: columns in the first half, rows in the second, sines first."""
    positions = sincos_positions(16, (2, 3))[0]
    assert not positions[0].any()
    for row in range(2):
        for column in range(3):
            for half, place in enumerate((column, row)):
                for i in range(4):
                    angle = place / 10_000 ** (i / 4)
                    got = (
                        positions[1 + row * 3 + column, 8 * half + i],
                        positions[1 + row * 3 + column, 8 * half + 4 + i],
                    )
                    assert got == pytest.approx((math.sin(angle), math.cos(angle)), abs=1e-6)


def test_gradient_flows_to_every_trained_parameter():
    model = MaskedAutoencoderViT(**TINY)
    model(torch.rand(2, 3, 48, 48))[0].backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert without == []


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_named_sizes(name):
    with torch.device("meta"):
        model = ARCHITECTURES[name]()
    millions = sum(p.numel() for n, p in model.named_parameters() if not n.startswith(("decoder", "mask"))) / 1e6
    expected = {
        "micro_patch8": 1.22, "tiny_patch16": 5.5, "small_patch16": 21.7, "small_patch8": 21.7, "base_patch16": 85.8,
        "large_patch16": 303.3, "huge_patch14": 630.8,
    }  # fmt: skip
    assert millions == pytest.approx(expected[name.removeprefix("mae_vit_")], rel=0.01)
    public = name.endswith(("base_patch16", "large_patch16", "huge_patch14"))
    expected_decoder = (512, 8, 16) if public else (128, 2, 4) if "micro" in name else (256, 4, 8)
    blocks = model.decoder_blocks
    assert (model.decoder_embed.out_features, len(blocks), blocks[0].attn.num_heads) == expected_decoder


def test_a_mask_follows_from_its_seed_alone():
    seeds = torch.tensor([3, 4, 2**62, -7])
    noise = mask_noise(seeds, 196)
    assert torch.equal(noise[1:2], mask_noise(seeds[1:2], 196)) and noise.min() >= 0
    masks = random_masking(noise, 0.75)[1]
    assert len({tuple(m.tolist()) for m in masks}) == 4


def test_mask_noise_equals_splitmix64_in_python_integers():
    def mix(x):
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % 2**64
        return x ^ (x >> 31)

    golden_gamma = 0x9E3779B97F4A7C15
    for seed in (0, 1, 2**63 - 1, -5):
        state = mix((seed % 2**64 * golden_gamma + golden_gamma) % 2**64)
        expected = [mix((state + golden_gamma * n) % 2**64) % 2**63 for n in range(1, 6)]
        assert mask_noise(torch.tensor([seed]), 5)[0].tolist() == expected


def test_masks_from_seeds_hide_every_patch_equally_often():
    masks = random_masking(mask_noise(torch.arange(4000), 36), 0.75)[1]
    share = masks.mean(0)  # standard error: sqrt(.75 * .25 / 4000) = 0.0068
    assert (share - 0.75).abs().max() < 0.0068 * 4.5
    together = (masks.T @ masks / 4000)[~torch.eye(36, dtype=bool)]  # exactly 27/36 * 26/35 for two given patches
    assert (together - 27 / 36 * 26 / 35).abs().max() < 0.0079 * 5


def test_hidden_patches_cost_nothing_and_attention_is_fused():
    """Counted, not timed: the embedding multiplies K patches, and no softmax is written out."""
    model, pixels = MaskedAutoencoderViT(**TINY), torch.randn(2, 3, 48, 48)
    ids_keep = random_masking(torch.rand(2, 36), 0.75)[0]
    with FlopCounterMode(display=False) as counter:
        tokens = model.tokens(pixels, ids_keep)
    assert counter.get_total_flops() == 2 * 2 * 9 * 192 * 48 and tokens.shape == (2, 10, 48)

    class Names(TorchDispatchMode):
        seen: set[str] = set()

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.seen.add(str(function))
            return function(*args, **(kwargs or {}))

    with Names() as names:
        model(torch.rand(2, 3, 48, 48))
    assert any("scaled_dot_product" in name for name in names.seen)
    assert not any("softmax" in name for name in names.seen)


def test_one_place_for_mean_and_std():
    """ImageNet's statistics, 0.229 and not 0.228, stand in one file; nobody else writes them down."""
    assert (IMAGENET_MEAN, IMAGENET_STD) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    root = Path(__file__).parents[2]
    folders = [root / name for name in ("mae", "ml", "dataset_loader", "evaluation", "cli")]
    where = [p.name for folder in folders for p in folder.rglob("*.py") if re.search(r"0\.(456|406)\b", p.read_text())]
    assert where == ["patches.py"]
