"""One training step by itself: accumulation, clipping, NaN, the optimiser's groups, the learning rate, the averages."""

import pytest
import torch

from common.errors import InputError
from mae.models_mae import MAEEncoder
from ml.optimisation import (
    Averaged,
    clip_gradients,
    load_optimizer_state,
    lr_scale,
    make_optimizer,
    make_scheduler,
    optimizer_state,
)
from ml.SiamMAE import SiamMAE
from ml.step import training_step

CPU = torch.device("cpu")


def tiny(seed=0, **kw):
    torch.manual_seed(seed)
    return SiamMAE(
        MAEEncoder(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2), decoder_size=(32, 1, 2), **kw
    )


def batch(count, seed=0):
    draw = torch.Generator().manual_seed(seed)
    video = torch.randint(256, (count, 2, 3, 32, 32), dtype=torch.uint8, generator=draw)
    return {"video": video, "seed": torch.arange(count) + 100 * seed}


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("sizes", [(2, 2), (1, 3)])
def test_a_batch_in_parts_is_the_same_step(sizes):
    """Losses and gradients are means over pairs, not over batches (PITFALLS 7)."""
    whole, results, ends = batch(4), [], []
    parts = [{key: value.split(sizes)[k] for key, value in whole.items()} for k in range(2)]
    for batches in ([whole], parts):
        model = tiny()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        results.append(training_step(model, batches, optimizer, device=CPU))
        ends.append(weights(model))
    one, two = results
    assert one.pairs == two.pairs == 4
    assert (two.loss, two.own_loss) == pytest.approx((one.loss, one.loss), rel=1e-5)
    assert two.grad_norm == pytest.approx(one.grad_norm, rel=1e-4)
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=1e-4, atol=1e-6)
    assert not torch.equal(ends[0]["decoder.pred.weight"], weights(tiny())["decoder.pred.weight"])


@pytest.mark.parametrize("optimiser", [make_optimizer, lambda model, lr: torch.optim.SGD(model.parameters(), lr)])
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_step_with_nan_changes_nothing(optimiser, what):
    """Whatever the optimiser: the fused one decides on the device, others are not called."""
    model = tiny()
    optimizer = optimiser(model, 0.1)
    training_step(model, [batch(2)], optimizer, device=CPU)
    before, state = weights(model), {k: v["step"].clone() for k, v in optimizer_state(model, optimizer).items() if v}
    forward = model.forward

    def poisoned(*args, **kw):
        loss, prediction, mask = forward(*args, **kw)
        return (loss * torch.nan if what == "loss" else (loss / loss.detach()) ** torch.inf), prediction, mask

    model.forward = poisoned
    result = training_step(model, [batch(2)], optimizer, device=CPU)
    assert not (torch.tensor([result.loss, result.grad_norm]).isfinite().all())
    assert all(torch.equal(value, before[name]) for name, value in weights(model).items())
    assert {k: v["step"] for k, v in optimizer_state(model, optimizer).items() if v} == state


def test_clipping_shortens_long_gradients_and_tells_their_length():
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 3)
    model(torch.randn(4, 3)).square().sum().backward()
    before = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert clip_gradients(model, 0).item() == pytest.approx(before.norm().item(), rel=1e-6)
    assert clip_gradients(model, 0.5).item() == pytest.approx(before.norm().item(), rel=1e-6)
    after = torch.cat([p.grad.flatten() for p in model.parameters()])
    torch.testing.assert_close(after, before * 0.5 / before.norm(), rtol=1e-4, atol=0)


def test_layers_learn_the_slower_the_deeper_they_lie():
    model = tiny()
    names = {id(p): name for name, p in model.named_parameters()}
    groups = make_optimizer(model, 1.0, layer_decay=0.5).param_groups
    factor = {names[id(p)]: group["lr"] for group in groups for p in group["params"]}
    assert factor["encoder.patch_embed.proj.weight"] == factor["encoder.cls_token"] == 0.5**3
    assert factor["encoder.blocks.0.attn.qkv.bias"] == 0.5**2 and factor["encoder.blocks.1.attn.qkv.bias"] == 0.5
    assert {factor[name] for name in factor if name.startswith("decoder.")} == {1.0}
    assert factor.keys() == {name for name, p in model.named_parameters() if p.requires_grad}


def test_the_optimisers_state_goes_by_name():
    model = tiny()
    optimizer = make_optimizer(model, 1e-3)
    model(torch.randint(256, (2, 2, 3, 32, 32), dtype=torch.uint8))[0].backward()
    optimizer.step()
    other = tiny(1)
    decayed = make_optimizer(other, 1e-3, layer_decay=0.7)  # other groups, other order
    load_optimizer_state(other, decayed, optimizer_state(model, optimizer))
    for (name, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
        if p.requires_grad:
            assert torch.equal(optimizer.state[p]["exp_avg"], decayed.state[q]["exp_avg"]), name
    with pytest.raises(InputError, match="another model"):
        load_optimizer_state(other, decayed, {"x": {}})


def test_averages_follow_the_weights_slowly():
    model = torch.nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(0.0)
    averaged = Averaged(model, 0.75)
    for _ in range(2):
        model.weight.data.fill_(1.0)
        averaged.update()
    assert averaged.state()["weight"].item() == pytest.approx(1 - 0.75**2)
    with averaged.in_place():
        assert model.weight.item() == pytest.approx(1 - 0.75**2)
    assert model.weight.item() == 1.0


def test_the_learning_rate_at_its_landmarks():
    assert lr_scale(0, 40, 400) == 0 and lr_scale(20, 40, 400) == 0.5 and lr_scale(40, 40, 400) == 1
    assert lr_scale(220, 40, 400) == pytest.approx(0.5) and lr_scale(400, 40, 400) == pytest.approx(0)
    assert lr_scale(0, 0, 10) == 1
    optimizer = make_optimizer(tiny(), 2.0)
    scheduler, seen = make_scheduler(optimizer, 2, 6), []
    for _ in range(6):  # PITFALLS 9: what an update uses, not what is set after it
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert seen == [2 * lr_scale(step, 2, 6) for step in range(6)] and seen[0] == 0


def test_decay_spares_vectors_only():
    model = tiny()
    decayed, spared = make_optimizer(model, 1.0, 0.05).param_groups
    names = {id(p): n for n, p in model.named_parameters()}
    assert (decayed["weight_decay"], spared["weight_decay"], decayed["betas"]) == (0.05, 0.0, (0.9, 0.95))
    assert {names[id(p)] for p in spared["params"]} == {
        n for n, p in model.named_parameters() if n.endswith("bias") or "norm" in n
    }
    assert {"encoder.cls_token", "decoder.mask_token"} <= {names[id(p)] for p in decayed["params"]}
    assert "encoder.pos_embed" not in names.values() or not model.encoder.pos_embed.requires_grad
    assert len(decayed["params"]) + len(spared["params"]) == sum(p.requires_grad for p in model.parameters())
