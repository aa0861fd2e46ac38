"""A small head that tells of each patch, from what the decoder knows of it, how wrong its prediction will be.

One head, two lessons: ranked by its loss (HPM, Wang et al. 2023, §3.2), it says which patches are hard; taught the
variance of the error (Gaussian NLL), how uncertain each is. Features come in detached, so predictions do not change.

Legend: B pairs, N patches, P pixels in one, D width of the decoder.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn import functional as F

LARGEST = 10.0  # of a logarithm of a variance, either way


class PatchHead(nn.Module):
    """Decoder features [B, N, D] → [B, N, outputs]; 0 everywhere before training."""

    def __init__(self, width: int, outputs: int = 1) -> None:
        super().__init__()
        last = nn.Linear(width, outputs)
        self.layers = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), last)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, features: Tensor) -> Tensor:
        return self.layers(features.float()).clamp(-LARGEST, LARGEST)


@contextmanager
def decoder_features(model: nn.Module) -> Iterator[list[Tensor]]:
    """Inside, each forward pass of a model of pairs appends what its last layer predicts from: [B, N, D], detached."""
    found: list[Tensor] = []
    last: nn.Module = model.decoder.pred  # type: ignore[assignment,union-attr]
    hook = last.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0].detach()))
    try:
        yield found
    finally:
        hook.remove()


def beta_nll(error: Tensor, log_variance: Tensor, beta: float = 0.5) -> Tensor:
    """Squared errors and log σ² of one shape → the Gaussian NLL of each, ½(e²/σ² + log σ²), times σ^2β without its
    gradient (Seitzer et al. 2022, eq. 7); β = 0 is the NLL itself. The constant ½ log 2π is left out.
    """
    loss = 0.5 * (error * (-log_variance).exp() + log_variance)
    return loss * (beta * log_variance.detach()).exp() if beta else loss


def hidden_mean(values: Tensor, mask: Tensor) -> Tensor:
    """The mean of values [B, N, …] over hidden patches (mask [B, N] is 1) and what else there is of each."""
    return (values.flatten(2).mean(2) * mask).sum() / mask.sum()


def variance_loss(scores: Tensor, error: Tensor, mask: Tensor) -> Tensor:
    """Scores log σ² [B, N] and squared errors [B, N] → β-NLL with β = 0.5 over hidden patches."""
    return hidden_mean(beta_nll(error, scores)[..., None], mask)


def relative_loss(scores: Tensor, error: Tensor, mask: Tensor) -> Tensor:
    """Scores and errors [B, N] → the cross-entropy of which of two hidden patches of a frame has the larger error, over
    all pairs with unequal errors (HPM, eq. 5).
    """
    logits = scores[:, :, None] - scores[:, None]  # [B, N, N]
    larger = (error[:, :, None] > error[:, None]).float()
    counted = mask[:, :, None] * mask[:, None] * (error[:, :, None] != error[:, None])
    return F.binary_cross_entropy_with_logits(logits, larger, counted, reduction="sum") / counted.sum().clamp(min=1)
