"""What only a GPU can show: `make gpu` runs these; elsewhere they skip."""

import copy

import pytest
import torch

from benchmarks.counting import noise_batch
from dataset_loader import get_kinetics_dataset, make_loader
from ml.optimisation import make_optimizer
from ml.ranks import compile_as_graphs, compile_blocks
from ml.SiamMAE import build_model
from ml.step import training_step

MODELS = ["siammae_micro_patch8", "mae_st_micro_patch8"]
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")]
CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")


def batch_of(model, pairs=4):
    data = noise_batch(model, pairs)
    return {"video": data["video"].cpu().pin_memory(), "seed": data["seeds"].cpu().pin_memory()}


@pytest.fixture
def in_float32(monkeypatch):
    """No autocast, and no TF32."""
    monkeypatch.setattr("ml.step.precision", lambda device: torch.autocast(device.type, enabled=False))
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.parametrize("name", MODELS)
def test_masks_are_bit_equal_to_the_cpus(name):
    model = build_model(name)
    batch = batch_of(model, 16)
    masks = []
    for device in (CPU, CUDA):
        model.to(device)
        video, seeds = batch["video"].to(device), batch["seed"].to(device)
        with torch.no_grad():
            masks.append(model(video, noise=model.draw_noise(video, seeds))[2].cpu())
    assert torch.equal(*masks)


@pytest.mark.parametrize("name", MODELS)
def test_a_step_in_float32_is_the_cpus(name, in_float32):
    torch.manual_seed(0)
    model = build_model(name)
    there = copy.deepcopy(model).to(CUDA)
    for device, each in ((CPU, model), (CUDA, there)):
        result = training_step(each, [batch_of(each)], make_optimizer(each, 1e-3), device=device, clip_grad=1.0)
        if device == CPU:
            expected = result
    assert result.loss == pytest.approx(expected.loss, rel=1e-4)
    assert result.grad_norm == pytest.approx(expected.grad_norm, rel=1e-4)
    for (key, p), q in zip(model.named_parameters(), there.parameters(), strict=True):
        if p.grad is not None:
            assert (p.grad - q.grad.cpu()).norm() <= 1e-4 * p.grad.norm() + 1e-7, key


@pytest.mark.parametrize("name", MODELS)
def test_a_warm_step_never_waits_for_the_device(name):
    model = build_model(name).to(CUDA)
    optimizer, batch = make_optimizer(model, 1e-4), batch_of(model)
    for _ in range(3):
        training_step(model, [batch], optimizer, device=CUDA, clip_grad=1.0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        result = training_step(model, [batch, batch], optimizer, device=CUDA, clip_grad=1.0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert 0 < result.loss < 10


@pytest.mark.filterwarnings("ignore")  # of the compiler, about the machine
@pytest.mark.parametrize("how", [compile_blocks, compile_as_graphs])
def test_compiled_it_learns_the_same(how):
    losses = []
    for compiled in (False, True):
        torch._dynamo.reset()
        torch.manual_seed(0)
        model = build_model(MODELS[0]).to(CUDA)
        if compiled:
            how(model)
        optimizer, batch = make_optimizer(model, 1e-3), batch_of(model, 8)
        losses.append([training_step(model, [batch], optimizer, device=CUDA).loss for _ in range(8)])
    assert losses[1] == pytest.approx(losses[0], abs=2e-2) and losses[0][-1] < losses[0][0]


def test_pinned_batches_are_the_loaders_own(clips):
    """Copied while the device is busy and the memory is used again: no batch is overwritten on its way."""
    dataset = get_kinetics_dataset(clips, image_size=64, visits=8)
    expected = [batch["video"].clone() for batch in make_loader(dataset, 4)]
    busy, sent = torch.randn(4096, 4096, device=CUDA), []
    for batch in make_loader(dataset, 4, workers=1, pin_memory=True):
        assert batch["video"].is_pinned()
        busy = (busy @ busy).clamp(-1, 1)
        sent.append(batch["video"].to(CUDA, non_blocking=True))
    assert len(sent) == len(expected) == 12
    assert all(torch.equal(one.cpu(), other) for one, other in zip(sent, expected, strict=True))
