"""The loss on pairs that are not learnt from, always the same ones under the same masks."""

import torch

from common.errors import InputError
from ml.devices import Device, best_device, precision
from ml.loading import Loader, seeds_of
from ml.logs import EpochLoss, mean_over_pairs
from ml.ranks import Ranks
from ml.SiamMAE import Model


@torch.no_grad()
def evaluate(model: Model, data_loader: Loader, device: Device = None, *, ranks: Ranks | None = None) -> EpochLoss:
    """The mean loss over a loader without gradients. Masks follow from the pairs' seeds, or from their place in the
    order where they have none, so they repeat exactly. ranks: each has a share of the pairs, at least one, and all get
    the whole.
    """
    device = best_device(device)
    was_training = model.training
    model.to(device).eval()
    batches = ranks.gather(len(data_loader)) if ranks else [0]
    if ranks and min(batches) == 0:
        raise InputError(f"{len(batches)} processes cannot share fewer pairs than they are")
    losses: list[float] = []
    pairs: list[int] = []
    for batch in data_loader:
        video = batch["video"].to(device)
        seeds = seeds_of(batch, device)
        if seeds is None:
            seeds = torch.arange(sum(pairs), sum(pairs) + video.shape[:-4].numel(), device=device)
        with precision(device):
            loss, _, mask = model(video, seeds=seeds)
        losses.append(loss.item())
        pairs.append(len(mask))
    if ranks:
        for _ in range(max(batches) - len(losses)):  # for nothing: each call of a divided model is one of all processes
            with precision(device):
                model(video, seeds=seeds)
        shares = ranks.gather((losses, pairs))
        losses = [loss for share, _ in shares for loss in share]
        pairs = [count for _, share in shares for count in share]
    model.train(was_training)
    if not losses:
        raise InputError("there is nothing to evaluate: the loader has no batch")
    return EpochLoss(None, mean_over_pairs(losses, pairs), losses)
