"""DINOv3's files give the features that its published facts say, computed here once more, by hand."""

import pytest
import torch
from torch.nn import functional as F

from common.errors import InputError
from mae.formats import load
from mae.patches import normalize

WIDTH, HEADS, PATCH = 48, 3, 8


def weights(gated, bias):
    torch.manual_seed(0)
    hidden = 128 if gated else 192
    state = {"cls_token": (1, 1, WIDTH), "storage_tokens": (1, 2, WIDTH), "mask_token": (1, WIDTH)}
    state |= {"patch_embed.proj.weight": (WIDTH, 3, PATCH, PATCH), "patch_embed.proj.bias": (WIDTH,)}
    for n in range(2):
        block = {"norm1.weight": (WIDTH,), "norm1.bias": (WIDTH,), "norm2.weight": (WIDTH,), "norm2.bias": (WIDTH,)}
        block |= {"attn.qkv.weight": (3 * WIDTH, WIDTH), "attn.proj.weight": (WIDTH, WIDTH), "attn.proj.bias": (WIDTH,)}
        block |= {"ls1.gamma": (WIDTH,), "ls2.gamma": (WIDTH,)}
        block |= {"attn.qkv.bias": (3 * WIDTH,)} if bias else {}
        names = {"w1": (hidden, WIDTH), "w2": (hidden, WIDTH), "w3": (WIDTH, hidden)}
        names = names if gated else {"fc1": (hidden, WIDTH), "fc2": (WIDTH, hidden)}
        for name, shape in names.items():
            block |= {f"mlp.{name}.weight": shape, f"mlp.{name}.bias": shape[:1]}
        state |= {f"blocks.{n}.{name}": shape for name, shape in block.items()}
    state |= {"norm.weight": (WIDTH,), "norm.bias": (WIDTH,)}
    made = {name: torch.randn(shape) * 0.2 for name, shape in state.items()}
    made["rope_embed.periods"] = 100 ** (2 * torch.arange(WIDTH // HEADS // 4) / (WIDTH // HEADS / 2))
    if bias:
        mask = torch.cat([torch.ones(WIDTH), torch.zeros(WIDTH), torch.ones(WIDTH)])
        made |= {f"blocks.{n}.attn.qkv.bias_mask": mask for n in range(2)}
    return made


def by_hand(s, images):
    """Features as §10 of the facts tells: tokens are turned by their place, class and storage tokens are not."""
    x = F.conv2d(normalize(images), s["patch_embed.proj.weight"], s["patch_embed.proj.bias"], stride=PATCH)
    B, _, h, w = x.shape
    x = torch.cat([s["cls_token"].expand(B, -1, -1), s["storage_tokens"].expand(B, -1, -1), x.flatten(2).mT], 1)
    rows, columns = ((torch.arange(n) + 0.5) / n * 2 - 1 for n in (h, w))
    places = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1).flatten(0, 1)  # [N, 2]
    angles = (2 * torch.pi * places[:, :, None] / s["rope_embed.periods"]).flatten(1).repeat(1, 2)  # [N, D / heads]

    def turned(t):
        patches = t[:, :, 3:]
        a, b = patches.chunk(2, -1)
        patches = patches * angles.cos() + torch.cat([-b, a], -1) * angles.sin()
        return torch.cat([t[:, :, :3], patches], 2)

    def norm(t, name):
        return F.layer_norm(t, (WIDTH,), s[f"{name}.weight"], s[f"{name}.bias"], 1e-5)

    def linear(t, name):
        bias = s.get(f"{name}.bias")
        mask = s.get(f"{name}.bias_mask")
        return F.linear(t, s[f"{name}.weight"], bias if mask is None else bias * mask)

    for n in range(2):
        b = f"blocks.{n}"
        qkv = linear(norm(x, f"{b}.norm1"), f"{b}.attn.qkv").unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = qkv
        attention = (turned(q) @ turned(k).mT * q.shape[-1] ** -0.5).softmax(-1) @ v
        x = x + s[f"{b}.ls1.gamma"] * linear(attention.transpose(1, 2).flatten(2), f"{b}.attn.proj")
        t = norm(x, f"{b}.norm2")
        if f"{b}.mlp.w1.weight" in s:
            t = linear(F.silu(linear(t, f"{b}.mlp.w1")) * linear(t, f"{b}.mlp.w2"), f"{b}.mlp.w3")
        else:
            t = linear(F.gelu(linear(t, f"{b}.mlp.fc1")), f"{b}.mlp.fc2")
        x = x + s[f"{b}.ls2.gamma"] * t
    return norm(x, "norm")[:, 3:].unflatten(1, (h, w))


@pytest.mark.parametrize(("gated", "bias"), [(False, True), (True, False), (True, True)])
@torch.no_grad()
def test_features(tmp_path, gated, bias):
    state = weights(gated, bias)
    torch.save(state, tmp_path / "a.pth")
    loaded = load(tmp_path / "a.pth")  # the periods tell the heads
    assert loaded.about == "DINOv3, ViT-48×2/8, 2 blocks, 3 heads"
    for height, width in ((48, 48), (40, 72)):
        images = torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8)
        torch.testing.assert_close(loaded.encoder.encode(images), by_hand(state, images), rtol=0, atol=5e-5)


def test_other_periods_are_refused(tmp_path):
    state = weights(False, True)
    torch.save(state | {"rope_embed.periods": state["rope_embed.periods"] * 2}, tmp_path / "a.pth")
    with pytest.raises(InputError, match="its periods of RoPE .* are not DINOv3's"):
        load(tmp_path / "a.pth")
