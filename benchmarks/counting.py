"""What a training step costs, counted and not timed: operators, matrix products, attention, what is kept for backward.

Legend: N patches, K kept patches, F futures of a past, D encoder width, d decoder width, P pixels in a patch.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from mae.masking import visible_count
from ml.SiamMAE import Model, SiamMAE


@dataclass
class Cost:
    """Of one step. operators: dispatched, forward and backward. products: FLOPs of matrix products outside attention.

    attention_forward: FLOPs of attention's two products, forward only. attention_calls: fused attentions, or those
    written out, forward only. kept: bytes of unique storages that autograd kept for the backward pass.
    """

    operators: int = 0
    forward_operators: int = 0
    products: int = 0
    attention_forward: int = 0
    attention_calls: int = 0
    kept: int = 0

    @property
    def flops(self) -> int:
        """Everything, with a backward pass of attention that costs twice the forward one."""
        return self.products + 3 * self.attention_forward


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.cost = Cost()
        self.backward = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.cost.operators += 1
        self.cost.forward_operators += not self.backward
        packet = func.overloadpacket
        if packet in flop_registry:
            flops = flop_registry[packet](*args, **(kwargs or {}), out_val=out)
            fused, written_out = "scaled_dot_product" in packet.__name__, packet.__name__ in ("bmm", "baddbmm")
            if not (fused or written_out):
                self.cost.products += flops
            elif not self.backward:
                self.cost.attention_forward += flops
                self.cost.attention_calls += 2 if fused else 1  # in halves: two products are one attention
        return out


def count(forward: Callable[[], Tensor], weights: Iterable[Tensor] = ()) -> Cost:
    """The cost of a forward pass that gives a scalar loss, and of its backward pass; the forward pass runs twice.

    weights: what is there anyway and does not count as kept.
    """
    storages: dict[int, Any] = {}  # held, so that no address is given out twice

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward()
    with _Counter() as counter:  # apart from the hooks, which dispatch operators of their own
        loss = forward()
        counter.backward = True
        loss.backward()
    counter.cost.attention_calls //= 2
    there = {weight.untyped_storage()._cdata for weight in weights}
    counter.cost.kept = sum(storage.nbytes() for key, storage in storages.items() if key not in there)
    return counter.cost


def least_products(model: SiamMAE, pasts: int, N: int, futures: int = 1) -> int:
    """The FLOPs that no way of computing a step can do without in matrix products outside attention, by formula.

    Two for each multiplication and addition; the backward pass computes two products for each of the forward pass, one
    for the weights and one for the input, but pixels need no gradient. f1 is read once, also in the decoder.
    """
    size = model.encoder.encoder_config
    D, depth, P = size["embed_dim"], size["depth"], 3 * model.patch_size**2
    d, decoder_depth, _ = model.decoder.size
    hidden = int(D * size["mlp_ratio"]), int(d * size["mlp_ratio"])
    K = visible_count(N, model.mask_ratio)
    read = (N + 1) + futures * (K + 1)  # tokens that the encoder reads; each frame has a class token
    placed = futures * (N + 1)  # places that the decoder predicts from
    embedding = (N + futures * K) * P * D
    encoder = depth * read * (4 * D * D + 2 * D * hidden[0])
    cross = placed * 2 * d * d + (N + 1) * 2 * d * d  # queries and output; keys and values of f1
    decoder = read * D * d + decoder_depth * (cross + placed * (4 * d * d + 2 * d * hidden[1])) + futures * N * d * P
    return 2 * pasts * (2 * embedding + 3 * (encoder + decoder))


def attention_forward(model: SiamMAE, pasts: int, N: int, futures: int = 1) -> tuple[int, int]:
    """By formula: the FLOPs of attention's products in the forward pass, and how many attentions there are."""
    size = model.encoder.encoder_config
    d, decoder_depth, _ = model.decoder.size
    K = visible_count(N, model.mask_ratio)
    encoder = size["depth"] * size["embed_dim"] * ((N + 1) ** 2 + futures * (K + 1) ** 2)
    decoder = decoder_depth * d * 2 * futures * (N + 1) ** 2  # cross and self
    return 4 * pasts * (encoder + decoder), 2 * size["depth"] + 2 * decoder_depth


def flops_a_pair(model: SiamMAE, futures: int = 1) -> float:
    """FLOPs of a pair, forward and backward, the least there can be; attention's backward is twice its forward."""
    N = model.grid[0] * model.grid[1]
    return (least_products(model, 1, N, futures) + 3 * attention_forward(model, 1, N, futures)[0]) / futures


def noise_batch(model: Model, samples: int, futures: int = 1) -> dict[str, Tensor]:
    """Pasts with their futures, or clips, of noise in the loader's memory layout (channels last), with their seeds,
    where the model is."""
    h, w = (side * model.patch_size for side in model.grid)
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    frames = getattr(model, "num_frames", 1 + futures)
    video = torch.randint(0, 256, (samples, frames, h, w, 3), dtype=torch.uint8, generator=generator)
    return {"video": video.permute(0, 1, 4, 2, 3).to(device), "seeds": torch.arange(samples, device=device)}
