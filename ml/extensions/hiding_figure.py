"""What each mask strategy would hide of the same pairs at the end of a training."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib.figure import Figure

from mae.masking import random_masking
from ml.extensions.hiding import STRATEGIES, Hiding
from ml.extensions.uncertainty import VarianceHeads
from ml.pair_models import PairModel


@torch.no_grad()
def hiding_figure(
    model: PairModel, samples: Sequence[Mapping[str, Any]], heads: VarianceHeads | None = None, *, progress: float = 1.0
) -> Figure:
    """One row a pair: f1, f2, and f2 as each strategy leaves it, with the same noise. heads: what scores patches for
    `uncertain`; strategies whose heads are not there are left out."""
    device = next(model.parameters()).device
    video = torch.stack([torch.as_tensor(sample["video"]) for sample in samples]).to(device)
    seeds = torch.stack([torch.as_tensor(sample["seed"]) for sample in samples])
    noise = model.eval().draw_noise(video, seeds)
    masks = {}
    for name, strategy in STRATEGIES.items():
        if strategy.lesson and (heads is None or name != "uncertain"):
            continue
        hiding = Hiding(name, model).to(device)
        if strategy.lesson and heads is not None:
            hiding.teacher["head"].load_state_dict(heads.patch.state_dict())
        hiding.progress = progress
        masks[name] = random_masking(hiding.noise(model, video, noise), model.mask_ratio)[1]
    pixels = 3 * model.patch_size**2
    figure = Figure(figsize=(1.5 * (2 + len(masks)), 1.55 * len(samples) + 0.4), layout="constrained")
    for row, axes in enumerate(figure.subplots(len(samples), 2 + len(masks), squeeze=False)):
        past, future = (frame.permute(1, 2, 0).cpu() for frame in video[row])
        pictures = {"f1": past, "f2": future}
        for name, mask in masks.items():
            hidden = model.unpatchify(mask[row : row + 1, :, None].expand(-1, -1, pixels))[0, 0].cpu() > 0
            pictures[name] = torch.where(hidden[..., None], torch.tensor(128, dtype=torch.uint8), future)
        for axis, (name, picture) in zip(axes, pictures.items(), strict=True):
            axis.imshow(picture.numpy(), interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            if row == 0:
                axis.set_title(name, fontsize=9)
    return figure
