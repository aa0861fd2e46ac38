"""A head on a frozen encoder: what its parts compute, and that without stretched positions it learns positions."""

from collections.abc import Iterator

import pytest
import timm
import torch
from torch.nn import functional as F

from common.errors import InputError
from mae.models_mae import MAEEncoder
from ml.extensions.settle import (
    Head,
    cycle_loss,
    divergence,
    grid_of,
    load_head,
    save_head,
    settle,
    stretched_positions,
)
from ml.SiamMAE import build_model

GRID, P = 8, 4
SIDE, ROOM = GRID * P, 12


def encoder(**changes) -> MAEEncoder:
    torch.manual_seed(0)
    return MAEEncoder(**{**dict(img_size=SIDE, patch_size=P, embed_dim=64, depth=1, num_heads=2), **changes}).eval()


def encode_with(model):
    def encode(images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return model.encode(images)

    return encode


def pairs(count: int, seed: int, noise: float = 0.0, moving: bool = False) -> Iterator[tuple[torch.Tensor, ...]]:
    """Pairs of smooth pictures, as noisy as said, with f2 moved by so many whole patches [B, 2]."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        coarse = torch.randint(0, 256, (count, 3, 8, 8), generator=generator).float()
        images = F.interpolate(coarse, SIDE + 2 * ROOM, mode="bicubic").clamp(0, 255)
        moves = torch.randint(-2, 3, (count, 2), generator=generator) * moving
        windows = [
            image[:, ROOM + P * down : ROOM + P * down + SIDE, ROOM + P * right : ROOM + P * right + SIDE]
            for image, (down, right) in zip(images, moves.tolist(), strict=True)
        ]
        video = torch.stack([images[..., ROOM:-ROOM, ROOM:-ROOM], torch.stack(windows)], dim=1)
        yield (video + noise * torch.randn(video.shape, generator=generator)).clamp(0, 255).byte(), moves


def matches(encode, head) -> tuple[float, float]:
    """Of patches that moved: the share whose nearest feature in f1 is where they came from, and at the same place."""
    video, moves = next(pairs(32, 99, moving=True))
    with torch.no_grad():
        past, future = (F.normalize(head(encode(video[:, f])).flatten(1, 2), dim=-1) for f in (0, 1))
    nearest = (future @ past.mT).argmax(-1)
    own = torch.arange(GRID * GRID)
    rows, columns = own // GRID + moves[:, :1], own % GRID + moves[:, 1:]
    moved = (rows.clamp(0, GRID - 1) == rows) & (columns.clamp(0, GRID - 1) == columns) & moves.any(1, keepdim=True)
    share = [(nearest == place)[moved].float().mean().item() for place in (rows * GRID + columns, own.expand(32, -1))]
    return share[0], share[1]


@pytest.mark.slow
def test_without_stretched_positions_it_collapses():
    """Trained on still, noisy pairs, where the position is the surest answer; asked about pairs that moved."""
    model = encoder()
    model.pos_embed.data *= 4  # an encoder that knows well where a patch is
    encode = encode_with(model)
    before = matches(encode, torch.nn.Identity())
    found = {}
    for stretch in (1.0, 10.0):
        videos = (video for video, _ in pairs(8, 1, noise=80))
        settling = settle(encode, model, videos, steps=120, lr=5e-3, weight=0.3, stretch=stretch)
        assert settling.cycle[-1] < settling.cycle[0]
        found[stretch] = matches(encode, settling.head)
    assert 0.2 < before[0] < 0.6
    assert found[1.0][0] < 0.1
    assert found[1.0][1] > 0.6
    assert found[10.0][0] > 0.9
    assert found[10.0][1] < 0.05


def test_nothing_of_the_encoder_changes():
    model = build_model(
        dict(model="SiamMAE", mae=dict(img_size=SIDE, patch_size=P, embed_dim=32, depth=1, num_heads=2),
             mask_ratio=0.75, decoder_size=[16, 1, 2])
    )  # fmt: skip
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, again = (settle(encode_with(model), model, (v for v, _ in pairs(4, 2)), steps=5).head for _ in range(2))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(one, other) for one, other in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.linear.weight, torch.eye(32))


def test_it_begins_as_a_layer_norm():
    features = torch.randn(2, 5, 16)
    assert torch.allclose(Head(16)(features), F.layer_norm(features, (16,)), atol=1e-6)


def test_the_cycle_by_loops():
    torch.manual_seed(0)
    past, future, back = (torch.randn(2, 4, 6) for _ in range(3))
    loss, accuracy = cycle_loss(past, future, back, 0.3)

    def softmax_of(query, keys):
        cosines = torch.stack([query @ key / (query.norm() * key.norm()) / 0.3 for key in keys])
        return cosines.exp() / cosines.exp().sum()

    total, hits = 0.0, 0
    for b in range(2):
        for n in range(4):
            there = softmax_of(past[b, n], future[b])
            returned = sum(there[m] * softmax_of(future[b, m], back[b]) for m in range(4))
            total -= returned[n].log()
            hits += int(returned.argmax() == n)
    assert loss.item() == pytest.approx(float(total) / 8, rel=1e-5)
    assert accuracy == hits / 8
    before, after = torch.randn(2, 4, 6), torch.randn(2, 4, 6)
    p, q = before.softmax(-1), after.softmax(-1)
    assert divergence(before, after).item() == pytest.approx((p * (p / q).log()).sum().item() / 8, rel=1e-5)
    assert divergence(before, before).abs() < 1e-6


@pytest.mark.parametrize("kind", ["mae", "siammae", "timm"])
def test_positions_are_stretched_and_put_back(kind):
    model = {
        "mae": lambda: encoder(img_size=(24, 32)),
        "siammae": lambda: build_model("siammae_micro_patch8"),
        "timm": lambda: timm.create_model("vit_tiny_patch16_224", depth=1),
    }[kind]()
    table = getattr(model, "encoder", model).pos_embed
    own, grid = table.detach().clone(), grid_of(model)
    assert grid == {"mae": (6, 8), "siammae": (8, 8), "timm": (14, 14)}[kind]
    generator = torch.Generator().manual_seed(0)
    spreads = []
    for _ in range(8):
        with stretched_positions(model, generator):
            assert table.shape == own.shape
            assert torch.equal(table[:, 0], own[:, 0])
            assert not torch.equal(table, own)
            spreads.append(table[0, 1:].std(0).mean().item())
        assert torch.equal(table, own)
    with stretched_positions(model, generator, most=1.0):
        assert torch.allclose(table, own, atol=1e-5)
    assert min(spreads) < 0.7 * own[0, 1:].std(0).mean() or kind == "timm"  # stretched: neighbours are more alike


def test_a_file_and_back(tmp_path):
    torch.manual_seed(0)
    head = Head(12)
    torch.nn.init.normal_(head.linear.weight)
    save_head(tmp_path / "head.pt", head, source="run/3", weights="sha256 1", settings={"steps": 5})
    loaded, saved = load_head(tmp_path / "head.pt")
    features = torch.randn(3, 12)
    assert torch.equal(loaded(features), head(features))
    assert (saved["source"], saved["weights"], saved["settings"]) == ("run/3", "sha256 1", {"steps": 5})
    torch.save({"model": {}}, tmp_path / "other.pt")
    with pytest.raises(InputError, match="holds no head on a frozen encoder"):
        load_head(tmp_path / "other.pt")


def test_what_cannot_be_settled_is_said():
    with pytest.raises(InputError, match="Identity has no table of positions"):
        grid_of(torch.nn.Identity())
    model = encoder()
    few = (video for video, _ in [next(pairs(2, 0)) for _ in range(3)])
    with pytest.raises(InputError, match="ended after 3 of 5 steps"):
        settle(encode_with(model), model, few, steps=5)
