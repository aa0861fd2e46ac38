"""Does a model find what moved? Pairs with a known correspondence: errors where f1 shows the answer, and where the
decoder's cross-attention points.

Copying the same place gives a low error on slow video and says nothing about motion. Here f1's content lies elsewhere
by a known way, and each number stands beside those of trivial answers: the patch's mean, f1's patch at the same place,
that times its best factor, f1's pixels moved as they truly moved (the oracle), and the same model untrained.

Legend: B pairs, N patches of a frame, D width, L layers, S side of the frame in pixels, p of a patch; places are (row,
column) in pixels.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from common.errors import InputError
from mae.patches import grid_size, normalize_patches
from ml.decoders import CrossAttention
from ml.reconstruction import masking
from ml.SiamMAE import Model, build_model

SHIFTS = (4, 8, 12, 16)  # pixels
MASK_RATIOS = (0.75, 0.95)
DIRECTIONS = ((0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1))
AT_ONCE = 32  # pairs in one forward pass


@dataclass(frozen=True)
class MotionPairs:
    """Pairs whose true correspondence is known.

    video: uint8 [B, 2, 3, S, S]; flow: float [B, S, S, 2], the place in f1 of what each pixel of f2 shows; seen:
    bool [B, S, S], False where f1 does not show it (also without that where the place lies outside f1).
    """

    name: str
    video: Tensor
    flow: Tensor
    seen: Tensor | None = None


def shifted_pairs(images: Tensor, shift: int, *, seed: int = 0, size: int | None = None) -> MotionPairs:
    """Two windows of each image uint8 [B, 3, H, W]: f1 in its middle, f2 `shift` pixels beside it, in one of eight
    directions drawn by the seed. size: of the window; by default what leaves room for the largest of `SHIFTS`."""
    side = min(images.shape[-2:])
    size = side - 2 * max(SHIFTS) if size is None else size
    if size < 1 or size + 2 * shift > side:
        raise InputError(f"images of {list(images.shape[-2:])} pixels hold no windows of {size} shifted by {shift}")
    top, left = ((length - size) // 2 for length in images.shape[-2:])
    draw = torch.randint(len(DIRECTIONS), (len(images),), generator=torch.Generator().manual_seed(seed))
    moves = torch.tensor(DIRECTIONS)[draw] * shift  # [B, 2]
    future = [
        image[:, top + down : top + down + size, left + right : left + right + size]
        for image, (down, right) in zip(images, moves.tolist(), strict=True)
    ]
    video = torch.stack([images[..., top : top + size, left : left + size], torch.stack(future)], dim=1)
    return MotionPairs(f"shift {shift}", video, places(size)[None] + moves[:, None, None].float())


def cropped_pairs(name: str, video: Tensor, box: Tensor) -> MotionPairs:
    """Pairs of crops of one picture: video uint8 [B, 2, 3, S, S] and `box` [B, 2, 5] as `dataset_loader` gives them."""
    size = video.shape[-1]
    top, left, height, width, flip = box.double().unbind(-1)  # each [B, 2]
    steps = torch.arange(size, dtype=torch.float64) + 0.5
    columns = torch.where(flip[:, 1, None] > 0, size - steps, steps)  # of f2 as they lie in the picture
    rows = (top[:, 1, None] + steps * height[:, 1, None] / size - top[:, 0, None]) * size / height[:, 0, None]
    columns = (left[:, 1, None] + columns * width[:, 1, None] / size - left[:, 0, None]) * size / width[:, 0, None]
    columns = torch.where(flip[:, 0, None] > 0, size - columns, columns)
    flow = torch.stack([rows[:, :, None].expand(-1, -1, size), columns[:, None].expand(-1, size, -1)], dim=-1) - 0.5
    return MotionPairs(name, video, flow.float())


def places(size: int) -> Tensor:
    """[size, size, 2]: the place of each pixel."""
    steps = torch.arange(size, dtype=torch.float32)
    return torch.stack(torch.meshgrid(steps, steps, indexing="ij"), dim=-1)


@contextmanager
def cross_attention_maps(model: torch.nn.Module) -> Iterator[list[Tensor]]:
    """Inside, each forward pass appends the softmax of every cross-attention, layer by layer: [B, heads, N, N].

    The class tokens are left out, f1's after the softmax; of several futures [B, heads, F·N, N].
    """
    maps: list[Tensor] = []

    def keep(module: Any, arguments: tuple[Tensor, ...]) -> None:
        q, k, _ = module.heads(*arguments)
        weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
        maps.append(weights.unflatten(2, (-1, arguments[0].shape[1]))[..., 1:, 1:].flatten(2, 3))

    hooks = [m.register_forward_pre_hook(keep) for m in model.modules() if isinstance(m, CrossAttention)]
    try:
        yield maps
    finally:
        for hook in hooks:
            hook.remove()


def untrained_twin(model: Model) -> Model:
    """The same model as it was before any training, by seed 0."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_model(model.config).to(next(model.parameters()).device).eval()


def motion_report(
    model: Model,
    tests: Sequence[MotionPairs],
    *,
    mask_ratios: Sequence[float] = MASK_RATIOS,
    untrained: Model | None = None,
) -> dict[str, Any]:
    """For each test `errors` by mask ratio, and `attention` by what is seen of f2 and by layer; see the functions."""
    was_training = model.training
    model.eval()
    report = {}
    for test in tests:
        errors = {f"{ratio:g}": _errors(model, test, ratio, untrained) for ratio in mask_ratios}
        attention = {
            "f2 visible": attention_hits(model, test),
            **{f"{ratio:g} hidden": attention_hits(model, test, ratio) for ratio in mask_ratios},
        }
        report[test.name] = {"pairs": len(test.video), "errors": errors, "attention": attention}
    model.train(was_training)
    return report


def motion_score(tests: Sequence[MotionPairs], mask_ratio: float = 0.75) -> Any:
    """A function of a model for `train(score=…)`: the error of each test, and the last layer's hits with f2 visible."""

    def score(model: Model) -> dict[str, float]:
        values = {}
        for test in tests:
            values[f"{test.name}: error"] = _errors(model, test, mask_ratio, None)["model"]
            layers = attention_hits(model, test)
            if layers:
                values[f"{test.name}: hits"] = layers[f"layer {len(layers) - 2}"]["mean"]["exact"]
        return values

    return score


@torch.no_grad()
def _errors(model: Model, test: MotionPairs, mask_ratio: float, untrained: Model | None) -> dict[str, float]:
    """Squared errors of normalised pixels at hidden patches whose content f1 shows, and how many patches these were.

    The masks follow from the pairs' numbers, so all models are asked the same.
    """
    sums: dict[str, float] = {}
    patches, copy_target, copy_copy = 0, 0.0, 0.0
    device = next(model.parameters()).device
    for begin in range(0, len(test.video), AT_ONCE):
        part = slice(begin, begin + AT_ONCE)
        video, flow = test.video[part].to(device), test.flow[part].to(device)
        seeds = torch.arange(begin, begin + len(video), device=device)
        past, future = model.normalize(video).unbind(1)
        target = normalize_patches(model.patchify(future))
        copy = normalize_patches(model.patchify(past))
        with masking(model, mask_ratio):
            _, prediction, mask = model(video, seeds=seeds)
        guesses = {"model": _normalized(model, prediction), "copy": copy, "mean": torch.zeros_like(target)}
        guesses["oracle"] = normalize_patches(model.patchify(moved(past, flow)))
        if untrained is not None:
            with masking(untrained, mask_ratio):
                guesses["untrained"] = _normalized(untrained, untrained(video, seeds=seeds)[1])
        where = (mask * known(test, part, model.patch_size).to(device)).double()
        for name, guess in guesses.items():
            sums[name] = sums.get(name, 0.0) + ((guess - target).double().square().mean(-1) * where).sum().item()
        patches += int(where.sum())
        copy_target += ((copy * target).double().mean(-1) * where).sum().item()
        copy_copy += (copy.double().square().mean(-1) * where).sum().item()
    if not patches:
        raise InputError(f"{test.name}: no hidden patch of {len(test.video)} pairs is visible in f1: give more pairs")
    errors = {name: total / patches for name, total in sums.items()}
    # |target − a · copy|² with the best a, for normalised patches: the mean's error less what the copy explains
    errors["copy × factor"] = errors["mean"] - copy_target**2 / copy_copy / patches if copy_copy else errors["mean"]
    return {**errors, "patches": patches}


@torch.no_grad()
def attention_hits(model: Model, test: MotionPairs, mask_ratio: float = 0.0) -> dict[str, dict[str, dict[str, float]]]:
    """Where each patch of f2 looks most, beside where its content lies in f1: by layer, then by head and their mean.

    Counted are textured patches (spread of pixels above the median) that f1 shows, with mask_ratio 0 all of them, else
    the hidden ones. `exact`: share whose strongest key is at most half a patch away in both directions; `near`: one
    patch; `distance`: mean, in patches; `chance`: what pointing anywhere gives. Empty without cross-attention.
    """
    device, p = next(model.parameters()).device, model.patch_size
    sums: dict[tuple[str, str], Tensor] = {}
    count = 0.0
    for begin in range(0, len(test.video), AT_ONCE):
        part = slice(begin, begin + AT_ONCE)
        video = test.video[part].to(device)
        with masking(model, mask_ratio), cross_attention_maps(model) as maps:
            seeds = torch.arange(begin, begin + len(video), device=device)
            _, mask = model.predict(model.normalize(video), model.draw_noise(video, seeds))
        if not maps:
            return {}
        h, w = grid_size(video.shape[-2], video.shape[-1], p)
        centres = patch_centres(h, w, p).to(device)  # [N, 2]
        goal = F.avg_pool2d(test.flow[part].to(device).permute(0, 3, 1, 2), p).flatten(2).mT  # [B, N, 2]
        spread = model.patchify(model.normalize(video[:, 1])).std(-1)
        where = known(test, part, p).to(device) * (spread > spread.median()) * (mask if mask_ratio else 1.0)
        away = (centres[None, None] - goal[:, :, None]) / p  # [B, N, N, 2], of each key from the goal, in patches
        measures = torch.stack([*_hits(away), away.norm(dim=-1)])  # [3, B, N, N]
        named = {("chance", "mean"): torch.full_like(maps[0][:, 0], 1 / (h * w))}
        layers = {f"layer {layer + 1}": weights for layer, weights in enumerate(maps)}
        layers["all layers"] = torch.stack([weights.mean(1) for weights in maps], dim=1).mean(1, keepdim=True)
        for layer, weights in layers.items():
            heads = {f"head {k + 1}": head for k, head in enumerate(weights.unbind(1))} if weights.shape[1] > 1 else {}
            for head, shares in {**heads, "mean": weights.mean(1)}.items():
                named[layer, head] = F.one_hot(shares.argmax(-1), h * w).to(shares)
        for key, looked in named.items():
            sums[key] = sums.get(key, torch.zeros(3)) + ((measures * looked).sum(-1) * where).sum((1, 2)).cpu()
        count += where.sum().item()
    if not count:
        raise InputError(f"{test.name}: no patch of {len(test.video)} pairs is textured and visible in f1")
    hits: dict[str, dict[str, dict[str, float]]] = {}
    for (layer, head), total in sums.items():
        values = dict(zip(("exact", "near", "distance"), (total / count).tolist(), strict=True))
        hits.setdefault(layer, {})[head] = values
    return {**{layer: heads for layer, heads in hits.items() if layer != "chance"}, "chance": hits["chance"]}


def known(test: MotionPairs, part: slice, patch_size: int) -> Tensor:
    """[B, N]: 1 where f1 shows all that f2's patch shows."""
    flow = test.flow[part]
    inside = ((flow > -0.01) & (flow < flow.shape[1] - 0.99)).all(-1)  # a hundredth of a pixel for rounding
    if test.seen is not None:
        inside = inside & test.seen[part]
    return (F.avg_pool2d(inside.float()[:, None], patch_size).flatten(1) > 0.999).float()


def moved(past: Tensor, flow: Tensor) -> Tensor:
    """f1 [B, 3, S, S] taken from where each pixel of f2 lies in it, between pixels bilinearly: [B, 3, S, S]."""
    grid = flow.flip(-1) * 2 / (past.shape[-1] - 1) - 1
    return F.grid_sample(past, grid, mode="bilinear", padding_mode="border", align_corners=True)


def motion_table(report: dict[str, Any]) -> str:
    """Markdown: errors, one line a test and mask ratio; then where the last layer points with f2 visible."""
    columns = ("model", "copy", "copy × factor", "mean", "untrained", "oracle")
    lines = ["| pairs | hidden | " + " | ".join(columns) + " |", "|---|---|" + "---|" * len(columns)]
    for name, test in report.items():
        for ratio, errors in test["errors"].items():
            cells = [f"{errors[column]:.3f}" if column in errors else "–" for column in columns]
            lines.append(f"| {name} | {float(ratio):.0%} | **{cells[0]}** | {' | '.join(cells[1:])} |")
    lines += [
        "",
        "| f2 visible: hits | layer | exact | within a patch | distance in patches |",
        "|---|---|---|---|---|",
    ]
    for name, test in report.items():
        for layer, heads in test["attention"]["f2 visible"].items():
            values = heads["mean"]
            numbers = f"{values['exact']:.2f} | {values['near']:.2f} | {values['distance']:.2f}"
            lines.append(f"| {name} | {layer} | {numbers} |")
    lines += ["", "Half a patch counts as exact: at 4 pixels the same place does, and at 8 it lies within a patch."]
    return "\n".join(lines) + "\n"


def _hits(away: Tensor) -> tuple[Tensor, Tensor]:
    largest = away.abs().amax(-1)
    return (largest < 0.5 + 1e-3).float(), (largest < 1 + 1e-3).float()


def patch_centres(h: int, w: int, patch_size: int) -> Tensor:
    """[N, 2]: the middle of each patch, in pixels whose centres are whole numbers."""
    rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    return torch.stack([rows, columns], dim=-1).flatten(0, 1) * patch_size + (patch_size - 1) / 2


def _normalized(model: Model, prediction: Tensor) -> Tensor:
    """A prediction as normalised patches: that of a model of plain pixels is normalised by its own statistics."""
    return prediction.float() if model.norm_pix_loss else normalize_patches(prediction.float())
