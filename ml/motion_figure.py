"""Where hidden patches looked: f1 with arrows from a patch's own place to that of its strongest key."""

import torch
from matplotlib.figure import Figure

from mae.patches import grid_size
from ml.motion import MotionPairs, cross_attention_maps, known, patch_centres
from ml.reconstruction import masking
from ml.SiamMAE import Model

COLOURS = {"exact": "#1a9850", "within a patch": "#fdae61", "elsewhere": "#d73027"}


@torch.no_grad()
def motion_figure(
    model: Model, test: MotionPairs, *, mask_ratio: float = 0.75, pairs: int = 6, arrows: int = 14, heading: str = ""
) -> Figure:
    """For the first pairs of a test: f2 as it is seen, f1 with the arrows of the last layer's mean over heads, and f2.

    Drawn are hidden, textured patches whose content f1 shows, most textured first; a dot marks where it truly lies.
    """
    video = test.video[:pairs].to(next(model.parameters()).device)
    p, (h, w) = model.patch_size, grid_size(video.shape[-2], video.shape[-1], model.patch_size)
    with masking(model, mask_ratio), cross_attention_maps(model) as maps:
        _, _, mask = model(video, seeds=torch.arange(len(video), device=video.device))
    spread = model.patchify(model.normalize(video[:, 1])).std(-1)
    score = spread * mask * known(test, slice(0, pairs), p).to(spread)
    centres = patch_centres(h, w, p)
    looked = centres[maps[-1].mean(1).argmax(-1).cpu()] if maps else None  # [B, N, 2]
    truth = torch.nn.functional.avg_pool2d(test.flow[:pairs].permute(0, 3, 1, 2), p).flatten(2).mT
    figure = Figure(figsize=(6.6, 2.2 * len(video) + 0.9), layout="constrained")
    for row, axes in enumerate(figure.subplots(len(video), 3, squeeze=False)):
        past, future = video[row].cpu().permute(0, 2, 3, 1)
        hidden = mask[row].cpu().view(h, w).repeat_interleave(p, 0).repeat_interleave(p, 1)[..., None] > 0
        seen = torch.where(hidden, torch.tensor(128, dtype=torch.uint8), future)
        titles = ("f2 as it is seen", "f1: where hidden patches look", "f2")
        for axis, picture, title in zip(axes, (seen, past, future), titles, strict=True):
            axis.imshow(picture.numpy(), interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            if row == 0:
                axis.set_title(title, fontsize=9)
        if looked is None:
            continue
        textured = score[row].argsort(descending=True)[:arrows]
        for n in textured[score[row, textured] > 0].tolist():
            away = (looked[row, n] - truth[row, n]).abs().max() / p
            kind = "exact" if away < 0.501 else "within a patch" if away < 1.001 else "elsewhere"
            (y, x), (v, u) = centres[n].tolist(), looked[row, n].tolist()
            style = dict(arrowstyle="->", color=COLOURS[kind], lw=1.4, shrinkA=0, shrinkB=0)
            axes[1].annotate("", xy=(u, v), xytext=(x, y), arrowprops=style)
            axes[1].plot(truth[row, n, 1], truth[row, n, 0], ".", color="white", ms=5, mec="black", mew=0.5)
    figure.suptitle(heading or f"{test.name}, {mask_ratio:.0%} hidden", fontsize=11)
    key = ", ".join(f"{colour}: {name}" for name, colour in zip(COLOURS, ("green", "orange", "red"), strict=True))
    figure.supxlabel(f"arrow: from a patch's place to its strongest key ({key}); dot: the truth", fontsize=8)
    return figure
