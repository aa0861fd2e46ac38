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
from common.errors import InputError
from mae.models_mae import MAEEncoder
from mae.models_mae_st import SpatiotemporalMAE
from ml.devices import leave_cores
from ml.optimisation import make_optimizer
from ml.ranks import compile_blocks
from ml.SiamMAE import SiamMAE, build_model
from ml.step import training_step
from tests.ml.small import run, tiny
from tests.slowly import slowly

ROOT = Path(__file__).parents[2]
MODELS = ["siammae_micro_patch8", "mae_st_micro_patch8"]
ASKS = {"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "_unique2", "unique_dim"}


class Waits(TorchDispatchMode):
    """Counts by line of ours what makes the host wait for the device, or sends it something that blocks."""

    def __init__(self):
        super().__init__()
        self.found = Counter()

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


@pytest.mark.parametrize("name", [MODELS[0], *slowly(MODELS[1])])
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
@pytest.mark.parametrize("name", [MODELS[0], *slowly(MODELS[1])])
def test_compiled_block_by_block_there_is_no_break(name):
    """All blocks of a kind share one graph. (The whole model is one too: `test_contract`.)"""
    model = small(name)
    batch = noise_batch(model, 2)
    noise = model.draw_noise(batch["video"], batch.get("seeds"))
    torch._dynamo.reset()
    counters.clear()
    compile_blocks(model, backend="eager")
    for _ in range(2):
        model(batch["video"], noise=noise)[0].backward()
    torch._dynamo.reset()
    assert counters["stats"]["unique_graphs"] == 2 and not counters["graph_break"], counters


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["fsdp", "ddp"])
def test_nor_is_there_one_in_two_processes(strategy, trainer, tmp_path):
    """As the engine does it: compiled, then wrapped, two real steps; every block is compiled once."""
    program = tmp_path / "program.py"
    program.write_text(
        "import warnings; warnings.simplefilter('ignore')\n"
        "import torch\n"
        "from torch._dynamo.utils import counters\n"
        "from mae.models_mae import MAEEncoder\n"
        "from ml.optimisation import make_optimizer\n"
        "from ml.ranks import compile_blocks, join_ranks, leave_ranks, wrap\n"
        "from ml.SiamMAE import SiamMAE\n"
        "from ml.step import training_step\n"
        "ranks, device = join_ranks('cpu')\n"
        "torch.manual_seed(0)\n"
        "model = SiamMAE(MAEEncoder(32, 8, 32, 2, 2), decoder_size=(32, 2, 2))\n"
        "compile_blocks(model, backend='eager')\n"
        f"module = wrap(model, '{strategy}', ranks, device)\n"
        "optimizer = make_optimizer(model, 1e-3)\n"
        "video = torch.randint(256, (2, 2, 3, 32, 32)).byte()\n"
        "for k in range(2):\n"
        "    batch = dict(video=video, seed=torch.tensor([k, k + 2]))\n"
        "    loss = training_step(module, [batch, batch], optimizer, device=device, ranks=ranks).loss\n"
        "assert 0 < loss < 10\n"
        "assert not counters['graph_break'], counters['graph_break']\n"
        f"open(f'{tmp_path}/{{ranks.rank}}', 'w').write(str(counters['stats']['unique_graphs']))\n"
        "ranks.wait(); leave_ranks()\n"
    )
    codes, said = trainer.run(*[["python", program]] * 2, root=tmp_path)
    assert codes == [0, 0], said
    graphs = [int((tmp_path / str(rank)).read_text()) for rank in range(2)]
    assert graphs[0] == graphs[1] <= 4, graphs  # two blocks of the encoder, two of the decoder


def test_cuda_graphs_are_asked_for_of_the_whole_model(tmp_path, monkeypatch):
    """On a CPU only that; a step of several batches is refused, since a replay overwrites the gradients of the last."""
    asked = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: asked.append((type(self), options)))
    run(tmp_path, model=tiny(), cuda_graphs=True, epochs=1)
    assert asked == [(SiamMAE, dict(mode="reduce-overhead", dynamic=False))]
    with pytest.raises(InputError, match="one process and a step of one batch, here are 1 and 3"):
        run(tmp_path, model=tiny(), cuda_graphs=True, accumulation=3)


@pytest.mark.parametrize(("device", "threads", "workers", "expected"), [
    ("cpu", 16, 8, 8), ("cpu", 4, 8, 1), ("cuda", 64, 15, 4), ("cuda", 16, 15, 1), ("cuda", 1, 8, 1)
])  # fmt: skip
def test_a_gpu_leaves_the_cores_to_the_loader(device, threads, workers, expected, monkeypatch):
    chosen = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    leave_cores(workers, torch.device(device))
    assert chosen == [expected]


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
