"""A small head on a frozen encoder that makes its features agree through time (Co-Settle, CVPR 2026, §4).

One linear map and a LayerNorm are trained on pairs of frames; the encoder stays as it is. f1's patches are to come back
to themselves by way of f2: the product of the two affinities is compared with the identity. A position alone would
solve that, so on the way back f1 is read with stretched positions. A second term keeps the head's features close to
the encoder's.

Legend: B pairs, N patches, D width, h w patch grid, k prefix tokens (such as the class token).
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.errors import InputError
from mae.reading import read_checkpoint
from ml.checkpoints import save_checkpoint
from ml.optimisation import lr_scale

Encode = Callable[[Tensor], Tensor]  # images uint8 [B, 3, H, W] → [B, h, w, D], without a graph


class Head(nn.Module):
    """Linear and LayerNorm, [..., D] → [..., D]; begins as the LayerNorm alone."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        nn.init.eye_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Tensor) -> Tensor:
        normalized: Tensor = self.norm(self.linear(features))
        return normalized


@dataclass
class Settling:
    """What `settle` gives: the head, and per step the loss of the cycle, of the divergence, and the cycle's hits."""

    head: Head
    cycle: list[float] = field(default_factory=list)
    divergence: list[float] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)


@contextmanager
def stretched_positions(model: Any, generator: torch.Generator, most: float = 10.0) -> Iterator[None]:
    """Inside, the model's positions are its own, stretched 1 to `most` times and cropped at a random place.

    model: with `pos_embed` [1, k + h·w, D] and its grid, as a MAE encoder or a timm transformer.
    """
    model = getattr(model, "encoder", model)  # SiamMAE has one
    positions, (h, w) = model.pos_embed, grid_of(model)
    own = positions.data
    prefix = own.shape[1] - h * w
    table = own[:, prefix:].unflatten(1, (h, w)).permute(0, 3, 1, 2)  # [1, D, h, w]
    factor = 1 + (most - 1) * torch.rand((), generator=generator).item()
    size = round(h * factor), round(w * factor)
    top, left = (int(torch.randint(a - b + 1, (), generator=generator)) for a, b in zip(size, (h, w), strict=True))
    large = F.interpolate(table, size, mode="bicubic", align_corners=False)
    cropped = large[..., top : top + h, left : left + w].permute(0, 2, 3, 1).flatten(1, 2)
    positions.data = torch.cat([own[:, :prefix], cropped], dim=1)
    try:
        yield
    finally:
        positions.data = own


def grid_of(model: Any) -> tuple[int, int]:
    """The (h, w) of a model's table of positions. Raises InputError for one without."""
    model = getattr(model, "encoder", model)
    grid = getattr(model, "grid", None) or getattr(getattr(model, "patch_embed", None), "grid_size", None)
    if not isinstance(getattr(model, "pos_embed", None), nn.Parameter) or grid is None:
        raise InputError(
            f"{type(model).__name__} has no table of positions to stretch, without which a head would learn positions: "
            "give a ViT with pos_embed, such as MAE, SiamMAE or timm's"
        )
    h, w = grid
    return h, w


def cycle_loss(past: Tensor, future: Tensor, back: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Cross-entropy of f1 → f2 → f1 with the identity, and the share of patches that come back: features [B, N, D]."""
    affinity = _affinity(past, future, temperature).softmax(-1) @ _affinity(future, back, temperature).softmax(-1)
    own = torch.arange(affinity.shape[1], device=affinity.device).expand(affinity.shape[:2])
    loss = F.nll_loss((affinity + 1e-8).log().flatten(0, 1), own.flatten())
    return loss, (affinity.argmax(-1) == own).float().mean()


def divergence(before: Tensor, after: Tensor) -> Tensor:
    """KL(softmax(before) ‖ softmax(after)) over the width, mean over patches: features [B, N, D]."""
    return F.kl_div(after.log_softmax(-1), before.log_softmax(-1), reduction="none", log_target=True).sum(-1).mean()


def settle(
    encode: Encode,
    model: Any,
    pairs: Iterable[Tensor],
    *,
    steps: int = 1500,
    lr: float = 1e-3,
    temperature: float = 0.03,
    weight: float = 3.0,
    stretch: float = 10.0,
    seed: int = 0,
    told: Callable[[int, Settling], None] = lambda step, settling: None,
) -> Settling:
    """Train a head on pairs uint8 [B, 2, 3, H, W]; one batch a step, as many as `steps`.

    model: whose positions `encode` uses. AdamW, up over a twentieth of the steps, then down along half a cosine.
    weight: of the divergence. stretch: 1 leaves the positions alone, and the head collapses to them. told: is called
    after each step. Raises InputError if the pairs end early.
    """
    generator = torch.Generator().manual_seed(seed)
    settling = None
    for step, video in zip(range(steps), pairs, strict=False):
        past, future = (encode(video[:, f]).flatten(1, 2) for f in (0, 1))
        with stretched_positions(model, generator, stretch):
            back = encode(video[:, 0]).flatten(1, 2) if stretch > 1 else past
        if settling is None:
            settling = Settling(Head(past.shape[-1]).to(past.device))
            optimizer = torch.optim.AdamW(settling.head.parameters(), lr, weight_decay=0.05)
        head = settling.head
        for group in optimizer.param_groups:
            group["lr"] = lr * lr_scale(step, max(1, steps // 20), steps)
        z1, z2 = head(past), head(future)
        cycle, accuracy = cycle_loss(z1, z2, head(back), temperature)
        kl = (divergence(past, z1) + divergence(future, z2)) / 2
        optimizer.zero_grad(set_to_none=True)
        (cycle + weight * kl).backward()
        optimizer.step()
        for values, value in ((settling.cycle, cycle), (settling.divergence, kl), (settling.accuracy, accuracy)):
            values.append(value.item())
        told(step + 1, settling)
    if settling is None or len(settling.cycle) < steps:
        raise InputError(f"the pairs ended after {len(settling.cycle) if settling else 0} of {steps} steps")
    settling.head.eval()
    return settling


def save_head(path: Path, head: Head, *, source: str, weights: str | None, settings: dict[str, Any]) -> None:
    """Write a head with what it belongs to: the source's name, and the digest of its weights."""
    state = {name: value.detach().cpu() for name, value in head.state_dict().items()}
    save_checkpoint(path, {"head": state, "source": source, "weights": weights, "settings": settings})


def load_head(path: Path) -> tuple[Head, dict[str, Any]]:
    """Read what `save_head` wrote: the head in evaluation mode, and the rest. Raises InputError for another file."""
    saved = read_checkpoint(path)
    if not isinstance(saved.get("head"), dict) or "source" not in saved:
        raise InputError(f"{path} holds no head on a frozen encoder: make one with siammae settle SOURCE --data VIDEOS")
    head = Head(len(saved["head"]["norm.weight"]))
    head.load_state_dict(saved["head"])
    return head.eval(), saved


def _affinity(one: Tensor, other: Tensor, temperature: float) -> Tensor:
    return F.normalize(one, dim=-1) @ F.normalize(other, dim=-1).mT / temperature
