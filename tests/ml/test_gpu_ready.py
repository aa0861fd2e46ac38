<<<<<<< HEAD
"""What a GPU would wait for, compile and round, found out on a CPU: on fake CUDA tensors, by tracing, in bfloat16."""

import traceback
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.counting import noise_batch
from mae.models_mae import MAEEncoder
from mae.models_mae_st import SpatiotemporalMAE
from ml.optimisation import make_optimizer
from ml.ranks import compile_blocks
from ml.SiamMAE import SiamMAE, build_model
from ml.step import training_step

ROOT = Path(__file__).parents[2]
MODELS = ["siammae_micro_patch8", "mae_st_micro_patch8"]
ASKS = {"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "_unique2", "unique_dim"}


class Waits(TorchDispatchMode):
    """Counts by line of ours what makes the host wait for the device, or sends it something that blocks."""
=======
"""What a GPU would stumble over, shown on a CPU: waits for the host, graph breaks, a stream that autocast promotes."""

from collections import Counter

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.counting import noise_batch
from mae.blocks import TransformerBlock
from mae.models_mae import MAEEncoder
from ml.optimisation import clip_gradients, make_optimizer, update
from ml.SiamMAE import SiamMAE, build_model

BOTH = ("siammae_micro_patch8", "mae_st_micro_patch8")


class Waits(TorchDispatchMode):
    """Counts what makes the host wait for a GPU, or the GPU for the host, on fake CUDA tensors."""

    READS = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "_unique2")
>>>>>>> 2eb48fc (J1, J3, J4: a step waits for no copy (pixel statistics as buffers); under autocast the stream stays bfloat16; f1 and f2 through the same matrices together)

    def __init__(self):
        super().__init__()
        self.found = Counter()

<<<<<<< HEAD
    def note(self, what):
        ours = [frame for frame in traceback.extract_stack() if frame.filename.startswith(str(ROOT)) and ".venv" not in
                frame.filename and frame.filename != __file__]  # fmt: skip
        self.found[f"{what}: {Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else what] += 1

    def __torch_dispatch__(self, function, types, args=(), kw=None):
        kw, name = kw or {}, function.overloadpacket.__name__
        kinds = {x.device.type for x in torch.utils._pytree.tree_leaves(args) if isinstance(x, torch.Tensor)}
        if name in ASKS and "cuda" in kinds:
            self.note(name)
        if name.startswith(("index", "_index")) and args[0].device.type == "cuda":
            for index in (i for i in args[1] if i is not None) if isinstance(args[1], list | tuple) else ():
                if index.device.type == "cpu" or index.dtype in (torch.bool, torch.uint8):
                    self.note("index")
        if name in ("_to_copy", "copy_"):
            source, target = (args[1], args[0].device) if name == "copy_" else (args[0], kw.get("device"))
            blocking = not (args[2] if name == "copy_" and len(args) > 2 else kw.get("non_blocking"))
            if target is not None and blocking and {source.device.type, torch.device(target).type} == {"cpu", "cuda"}:
                self.note(f"a copy of {tuple(source.shape)}")
        return function(*args, **kw)


def small(name):
    """A model of either kind with a grid of 4×4."""
    torch.manual_seed(0)
    if name == MODELS[0]:
        return SiamMAE(MAEEncoder(32, 8, 48, 2, 4), decoder_size=(32, 2, 4))
    return SpatiotemporalMAE(32, 8, 4, 2, 2, 48, 2, 4, 32, 2, 4)


def on_fake_cuda(model):
    """The model's tensors become fake ones on a GPU."""
    for module in model.modules():
        for name, p in list(module._parameters.items()):
            if p is not None:
                fake = torch.empty(p.shape, dtype=p.dtype, device="cuda")
                module._parameters[name] = torch.nn.Parameter(fake, requires_grad=p.requires_grad)
        for name, buffer in list(module._buffers.items()):
            module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device="cuda")
    return model


@pytest.mark.parametrize("name", MODELS)
def test_a_step_waits_for_nothing(name, monkeypatch):
    """The real `training_step`, from the batch in pinned memory to the numbers on their way back. Autograd's engine
    wants a real GPU, so gradients are made by hand; backward adds no wait of its own."""
    with torch.device("meta"):
        model = build_model(name)
    with FakeTensorMode():
        on_fake_cuda(model)
        optimizer = make_optimizer(model, 1e-3)

        def backward(loss):
            for p in model.parameters():
                p.grad = torch.empty_like(p) if p.requires_grad else None

        class Event:
            def record(self):
                pass

        empty = torch.empty
        monkeypatch.setattr(torch.Tensor, "backward", backward)
        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch, "empty", lambda *a, pin_memory=False, **kw: empty(*a, **kw))
        video = torch.empty(4, *model.sample_shape, dtype=torch.uint8)
        batch = {"video": video, "seed": torch.empty(4, dtype=torch.int64)}
        with Waits() as waits:
            result = training_step(model, [batch, batch], optimizer, device=torch.device("cuda", 0), clip_grad=1.0)
    assert waits.found == {} and result.numbers.device.type == "cpu"


def test_the_watch_sees_waits():
    with FakeTensorMode(), Waits() as waits:
        x = torch.empty(3, device="cuda")
        x.to("cpu")
        torch.empty(3).to("cuda")
        x[[0, 1]]
        torch.tensor([1.0], device="cuda")
    assert sum(waits.found.values()) == 4, waits.found


@pytest.mark.filterwarnings("ignore")  # of the tracer, about what it touches
@pytest.mark.parametrize("name", MODELS)
def test_compiled_there_is_no_break(name):
    """As a whole, as `training_step` calls it; and block by block, where all blocks of a kind share one graph."""
    model = small(name)
    batch = noise_batch(model, 2)
    noise = model.draw_noise(batch["video"], batch.get("seeds"))
    torch._dynamo.reset()
    explained = torch._dynamo.explain(model)(batch["video"], noise=noise)
    assert (explained.graph_count, explained.graph_break_count) == (1, 0), explained.break_reasons
    torch._dynamo.reset()
    counters.clear()
    compile_blocks(model, backend="eager")
    for _ in range(2):
        model(batch["video"], noise=noise)[0].backward()
    torch._dynamo.reset()
    assert counters["stats"]["unique_graphs"] == 2 and not counters["graph_break"], counters


@pytest.mark.parametrize("name", MODELS)
def test_in_autocast_the_stream_stays_in_bfloat16(name, monkeypatch):
    """And the loss follows that of float32 over ten steps."""
    losses = []
    for mixed in (False, True):
        model, seen = small(name), []
        for block in [*model.modules()]:
            if type(block).__name__ == "Block":
                block.register_forward_hook(lambda _, args, out, seen=seen: seen.append((args[0].dtype, out.dtype)))
        optimizer, video, steps = make_optimizer(model, 1e-3), noise_batch(model, 4)["video"], []
        monkeypatch.setattr("ml.step.precision", lambda device: torch.autocast("cpu", torch.bfloat16, enabled=mixed))  # noqa: B023
        for k in range(10):
            batch = {"video": video, "seed": torch.arange(4) + 10 * k}
            steps.append(training_step(model, [batch], optimizer, device=torch.device("cpu")).loss)
        expected = torch.bfloat16 if mixed else torch.float32
        assert set(seen) == {(expected, expected)}
        losses.append(steps)
    assert losses[1] == pytest.approx(losses[0], abs=1e-2) and losses[1] != losses[0]


def test_features_in_bfloat16_point_the_same_way():
    for name in MODELS:
        model = small(name).eval()
        images = noise_batch(model, 4)["video"][:, 0]
        with torch.no_grad():
            whole = model.encode(images)
            with torch.autocast("cpu", torch.bfloat16):
                mixed = model.encode(images).float()
        assert torch.cosine_similarity(whole, mixed, dim=-1).min() >= 0.999


def test_both_frames_take_one_pass():
    """Through the matrices; the numbers are those of a pass for each frame. (`test_cost` counts what it saves.)"""
    encoder, products = small(MODELS[0]).encoder, []
    encoder.blocks[0].mlp.register_forward_hook(lambda _, args, out: products.append(args[0].shape))
    past, future = torch.randn(2, 17, 48), torch.randn(6, 5, 48)
    together = encoder.transform_together(past, future)
    assert products == [(2 * 17 + 6 * 5, 48)]
    for one, other in zip(together, (past, future), strict=True):
        torch.testing.assert_close(one, encoder.transform(other), rtol=0, atol=1e-5)
=======
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = function.overloadpacket.__name__
        on_gpu = any(isinstance(x, torch.Tensor) and x.device.type == "cuda" for x in tree_leaves(args))
        if name in self.READS and on_gpu:
            self.found[name] += 1
        if name.startswith("index") and on_gpu and isinstance(args[1], list):
            self.found["index on the host"] += sum(x is not None and x.device.type == "cpu" for x in args[1])
            self.found["index by a mask"] += sum(x is not None and x.dtype == torch.bool for x in args[1])
        if name in ("_to_copy", "copy_", "lift_fresh", "lift_fresh_copy"):
            source = args[1] if name == "copy_" else args[0]
            target = args[0].device if name == "copy_" else torch.device(kwargs.get("device") or source.device)
            waits = not kwargs.get("non_blocking", len(args) > 2 and args[2])
            self.found["copy"] += source.device.type != target.type and waits
        return function(*args, **kwargs)


def on_fake_gpu(model):
    for part in model.modules():
        for table in (part._parameters, part._buffers):
            for name, value in table.items():
                if value is not None:
                    fake = torch.empty(value.shape, dtype=value.dtype, device="cuda")
                    table[name] = torch.nn.Parameter(fake, value.requires_grad) if table is part._parameters else fake
    return model


@pytest.mark.parametrize("name", BOTH)
def test_a_step_waits_for_nothing(name, monkeypatch):
    """Forward, loss, clipping and the optimiser on fake CUDA tensors; autograd's backward adds no wait of its own."""
    with torch.device("meta"):
        model = build_model(name)
    make = torch.tensor

    def tensor(data, *args, device=None, **kw):
        waits.found["torch.tensor on the GPU"] += device is not None and torch.device(device).type == "cuda"
        return make(data, *args, device=device, **kw)

    with FakeTensorMode(), Waits() as waits:
        on_fake_gpu(model)
        optimizer = make_optimizer(model, 1e-4)
        video = torch.empty(4, *model.sample_shape, dtype=torch.uint8).to("cuda", non_blocking=True)
        seeds = torch.empty(4, dtype=torch.long).to("cuda", non_blocking=True)
        waits.found.clear()
        monkeypatch.setattr(torch, "tensor", tensor)
        loss, _, _ = model(video, noise=model.draw_noise(video, seeds))
        for parameter in model.parameters():
            parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
        norm = clip_gradients(model, 1.0)
        assert loss.device.type == norm.device.type == "cuda"
        update(optimizer, norm + 0 * loss.detach())
        assert +waits.found == {}
        seeds[torch.tensor([0])]  # the watch does see an index that lies on the host
        assert waits.found["index on the host"] == 1


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch, of itself, while it traces
def test_a_block_is_one_graph_and_all_blocks_share_it():
    torch._dynamo.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    model = build_model("siammae_micro_patch8")
    batch = noise_batch(model, 2)
    noise = model.draw_noise(batch["video"], batch["seeds"])
    expected = model(batch["video"], noise=noise)[0]
    model.compile_blocks(backend=backend)
    assert torch.equal(model(batch["video"], noise=noise)[0], expected)
    assert len(graphs) == 2  # of the six of the encoder, and of the two of the decoder
    torch._dynamo.reset()


@pytest.mark.parametrize("name", BOTH)
def test_under_autocast_the_stream_stays_bfloat16_and_learns_the_same(name):
    losses, seen = {}, set()
    for enabled in (False, True):
        torch.manual_seed(0)
        model = build_model(name)
        for part in model.modules():
            if enabled and isinstance(part, TransformerBlock):
                part.register_forward_hook(lambda _, args, out: seen.update({args[0].dtype, out.dtype}))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        batch, losses[enabled] = noise_batch(model, 2), []
        for _ in range(10):
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                loss = model(**batch)[0]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[enabled].append(loss.item())
        assert loss.dtype == torch.float32
    assert seen == {torch.bfloat16}
    assert losses[True] == pytest.approx(losses[False], abs=1e-2) and losses[True][-1] < losses[True][0]
    images = batch["video"][:, 0]
    with torch.no_grad():
        plain = model.encode(images)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = model.encode(images)
    assert torch.nn.functional.cosine_similarity(plain, rounded, dim=-1).min() > 0.999


def test_stacks_through_the_same_matrices_together_are_as_apart():
    torch.manual_seed(0)
    encoder = MAEEncoder((24, 32), patch_size=8, embed_dim=48, depth=2, num_heads=4)
    stacks = torch.randn(2, 13, 48), torch.randn(6, 4, 48)
    for one, other in zip(encoder.transform_together(*stacks), map(encoder.transform, stacks), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_checkpointing_takes_several_stacks():
    torch.manual_seed(0)
    model = SiamMAE(MAEEncoder((24, 32), 8, 48, 2, 4), decoder_size=(32, 1, 4), checkpointing=True)
    model(**noise_batch(model, 2))[0].backward()
    assert model.encoder.blocks[0].attn.qkv.weight.grad.any()
>>>>>>> 2eb48fc (J1, J3, J4: a step waits for no copy (pixel statistics as buffers); under autocast the stream stays bfloat16; f1 and f2 through the same matrices together)
