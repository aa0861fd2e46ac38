"""`python -m benchmarks.gpu_train --out FOLDER [--data VIDEOS]`: what a GPU makes of the training step, in 8 minutes.

Every row is the engine's own `training_step` on a batch that is on the device already, or on the loader's. The file is
written after each row; what may take long comes last; what no longer fits into the time is named. FLOPs are the least
that a step can do; they are set against the maker's figure, and against a matrix product measured in the same run.
`--reckon` measures nothing: it says, on any machine, what should come out (see benchmarks/reckoning.py).

Legend: B pairs in a step.
"""

import argparse
import gc
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.counting import flops_a_pair, noise_batch
from benchmarks.gpu_report import bars, table
from benchmarks.profiling import profile
from benchmarks.reckoning import NOMINAL, markdown, reckon
from benchmarks.rows import Rows
from common.errors import InputError
from common.files import write_json, write_text
from dataset_loader import get_kinetics_dataset, make_loader
from dataset_loader.packed import write_shard
from dataset_loader.synthetic import synthetic_video
from ml.devices import best_device, in_bfloat16, leave_cores, precision
from ml.optimisation import make_optimizer
from ml.ranks import compile_as_graphs, compile_blocks, shared
from ml.SiamMAE import SiamMAE, build_model
from ml.step import training_step

# model: its batches, the first of which gets a profile, and the share of the matrix rate that is aimed at
MODELS: dict[str, tuple[tuple[int, ...], float]] = {
    "siammae_small_patch16": ((256, 1024, 64), 0.45),
    "siammae_base_patch16": ((256, 64), 0.55),
    "siammae_large_patch16": ((128, 256, 32), 0.60),
}


@dataclass(frozen=True)
class Settings:
    """seconds: of a measured stretch; product: side; budget: seconds for everything; loader_batch: pairs."""

    models: dict[str, tuple[tuple[int, ...], float]] = field(default_factory=lambda: dict(MODELS))
    mask_ratio: float = 0.95
    seconds: float = 2.5
    product: int = 8192
    budget: float = 450.0
    image_size: int = 224
    loader_batch: int = 256
    clips: int = 16


SMOKE = Settings(
    {"siammae_micro_patch8": ((2, 4), 0.45)}, seconds=0.05, product=128, image_size=64, loader_batch=4, clips=4
)  # fmt: skip


class Late(Exception):
    """The time is up."""


def _late(*_: Any) -> None:
    raise Late


class Job(NamedTuple):
    """what, how many seconds it should take at most, and what does it: it adds its rows itself."""

    what: str
    seconds: float
    work: Callable[[], None]


class Run(Rows):
    """The rows of one run, in `folder`, as JSON and as text."""

    def __init__(
        self, settings: Settings, device: torch.device, folder: Path, data: str | None = None, workers: int = 15,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU: says nothing about a GPU"
        head = {"device": name, "torch": torch.__version__, "settings": asdict(settings)}
        super().__init__(folder / "gpu_train.json", device, settings.budget, settings.seconds, head, clock)
        self.settings, self._data, self._workers = settings, data, workers
        self.nominal = NOMINAL if any(known in name for known in ("H100", "H200")) else None
        self.rate: float | None = None

    def write(self) -> None:
        super().write()
        write_text(self.file.with_suffix(".txt"), table(self.result) + "\n")

    @contextmanager
    def deadline(self) -> Iterator[None]:
        """`Late` is raised inside when the time is up, whatever runs then."""
        before = signal.signal(signal.SIGALRM, _late)
        signal.setitimer(signal.ITIMER_REAL, max(1e-3, self.left))
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    def go(self, jobs: list[Job]) -> None:
        """One after the other; what fails is a row that says so, and takes nothing else with it."""
        self.write()
        waiting = list(jobs)
        try:
            with tempfile.TemporaryDirectory() as self._scratch, self.deadline():
                while waiting:
                    job = waiting[0]
                    if self.has_time(job.what, job.seconds):
                        try:
                            job.work()
                        except Late:
                            raise
                        except Exception as error:
                            said = str(error).splitlines() or [""]
                            self.keep(what=job.what, failed=f"{type(error).__name__}: {said[0][:200]}")
                        gc.collect()
                        if self.device.type == "cuda":
                            torch.cuda.empty_cache()
                    waiting.pop(0)
        except Late:
            self.result["left_out"] += [job.what for job in waiting]
        self.write()

    def jobs(self) -> list[Job]:
        """What is surest and matters most comes first."""
        models, seconds = self.settings.models, self.settings.seconds
        first = next(iter(models))
        compiled, eager = 12 * seconds + 30, 4 * seconds + 5
        result = [Job("matrix product", 2 * seconds, self.product)]
        result += [Job(f"{name}, attention", 5, lambda n=name: self.attention(n)) for name in models]  # type: ignore[misc]
        result += [Job("loader alone", 8 * seconds + 10, self.loader_alone)]

        def step(name: str, batch: int, how: str, expected: float = eager, **options: Any) -> Job:
            what = f"{name}, {how}, batch {batch}"
            return Job(what, expected, lambda: self.step(name, batch, how, **options))

        result += [step(name, b[0], "compiled", compiled, more=True) for name, (b, _) in models.items()]
        result += [step(name, b[0], "eager", eager, profiled=True) for name, (b, _) in models.items()]
        result += [step(name, size, "compiled", compiled) for name, (b, _) in models.items() for size in b[1:]]
        batch = models[first][0][0]
        result += [step(first, batch, strategy, compiled, strategy=strategy) for strategy in ("ddp", "fsdp")]
        result += [
            step(first, batch, "futures=2", futures=2),
            step(first, batch, "checkpointing", checkpointing=True),
            step(first, batch, "decoder in float32", decoder_float32=True),
        ]
        if self.device.type == "cuda":
            result.append(step(first, batch, "CUDA graphs", 120))
        return result

    def model(self, name: str, **options: Any) -> SiamMAE:
        torch.manual_seed(0)
        model: Any = build_model(name, mask_ratio=self.settings.mask_ratio, device=self.device, **options)
        return model

    def product(self) -> None:
        """The rate of a square matrix product, in the step's format."""
        side, dtype = self.settings.product, torch.bfloat16 if in_bfloat16(self.device) else torch.float32
        a, b = (torch.randn(side, side, device=self.device, dtype=dtype) for _ in range(2))
        out = torch.empty_like(a)
        self.rate = 2 * side**3 / self.seconds_of(lambda: torch.mm(a, b, out=out))
        self.keep(what="matrix product", tflops=self.rate / 1e12, share_of_nominal=self._share(self.rate, self.nominal))

    def attention(self, name: str) -> None:
        """Which of torch's attentions are taken, and for how many tokens and how wide heads."""
        model = self.model(name)
        watch = _Attention()
        batch = noise_batch(model, 2)
        with watch, precision(self.device):
            model(**batch)
        self.keep(what=f"{name}, attention", chosen=sorted(watch.found))

    def step(
        self, name: str, batch: int, how: str, *, futures: int = 1, strategy: Any = None, more: bool = False,
        profiled: bool = False, **options: Any,
    ) -> None:  # fmt: skip
        """Steps of one model at one batch. more: a profile as well, and for the first model steps from the loader."""
        torch._dynamo.reset()  # else the ninth shape of a block would run as it is
        model = self.model(name, **options)
        module: nn.Module = model
        if how == "CUDA graphs":
            compile_as_graphs(model)
        elif how == "compiled" or strategy:
            compile_blocks(model, "inductor" if self.device.type == "cuda" else "eager")
        with tempfile.TemporaryDirectory() as folder, _one_rank(folder, self.device, bool(strategy)):
            if strategy:
                module = shared(model, strategy, 1, self.device)
            optimizer = make_optimizer(model, 1e-5)
            data = noise_batch(model, batch // futures, futures)
            given = {"video": data["video"], "seed": data["seeds"]}
            work = lambda: training_step(module, [given], optimizer, device=self.device)  # noqa: E731
            if self.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            seconds = self.seconds_of(work)
            flops = flops_a_pair(model, futures) * batch
            self.keep(
                what=f"{name}, {how}", batch=batch, pairs_a_second=batch / seconds, milliseconds=1e3 * seconds,
                share=self._share(flops / seconds, self.rate),
                share_of_nominal=self._share(flops / seconds, self.nominal), aim=self.settings.models[name][1],
                memory_gb=torch.cuda.max_memory_allocated() / 1e9 if self.device.type == "cuda" else None,
            )  # fmt: skip
            if more or profiled:
                self.keep(what=f"{name}, {how}, profile", batch=batch, **profile(self, work))
            if more and name == next(iter(self.settings.models)):
                self.from_loader(f"{name}, {how}, from the loader", module, optimizer)

    @staticmethod
    def _share(rate: float, of: float | None) -> float | None:
        return rate / of if of else None

    @contextmanager
    def _batches(self) -> Iterator[Iterator[dict[str, Any]]]:
        """From the loader's processes, past the first ones."""
        dataset = get_kinetics_dataset(
            self._videos(), image_size=self.settings.image_size, repeated_sampling=2, visits=10_000
        )
        pinned = self.device.type == "cuda"
        loader = make_loader(dataset, self.settings.loader_batch, workers=self._workers, pin_memory=pinned)
        batches = iter(loader)
        for _ in range(max(2, self._workers)):
            next(batches)
        try:
            yield batches
        finally:
            batches.close()  # type: ignore[attr-defined]

    def _videos(self) -> str:
        """What was given, or else synthetic clips of a second in a packed shard, made when they are first asked for."""
        if self._data is not None:
            return self._data
        shard, size = Path(self._scratch) / "clips.tar", self.settings.image_size + 32
        if not shard.exists():
            write_shard(shard, ((f"{k}", _frames(k, size)) for k in range(self.settings.clips)))
        return str(shard)

    def loader_alone(self) -> None:
        """Pairs a second when nothing else is done, and what a batch costs the training thread."""
        with self._batches() as batches:
            start, own, pairs, count = time.perf_counter(), time.thread_time(), 0, 0
            while time.perf_counter() - start < 4 * self.settings.seconds:
                pairs, count = pairs + len(next(batches)["video"]), count + 1
            seconds, own = time.perf_counter() - start, time.thread_time() - own
        self.keep(
            what="loader alone", batch=self.settings.loader_batch, workers=self._workers,
            pairs_a_second=pairs / seconds, own_milliseconds=1e3 * own / count,
        )  # fmt: skip

    def from_loader(self, what: str, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """The loop as `train` has it: the numbers of a step are read when the next has been started."""
        with self._batches() as batches:
            waited, pairs, last = 0.0, 0, None
            start = time.perf_counter()
            while time.perf_counter() - start < 4 * self.settings.seconds:
                asked = time.perf_counter()
                batch = next(batches)
                waited += time.perf_counter() - asked
                result = training_step(module, [batch], optimizer, device=self.device)
                pairs += result.pairs
                if last is not None:
                    assert last.loss == last.loss, "the loss is NaN"
                last = result
            self.wait()
            seconds = time.perf_counter() - start
        self.keep(
            what=what, batch=self.settings.loader_batch, workers=self._workers, pairs_a_second=pairs / seconds,
            waiting=waited / seconds,
        )  # fmt: skip


class _Attention(TorchDispatchMode):
    """Notes the fused attentions that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        if "scaled_dot_product" in name:
            self.found.add(
                f"{name.strip('_')}: {args[0].shape[-2]}×{args[1].shape[-2]} tokens, {args[0].shape[-1]} wide"
            )
        return function(*args, **(kwargs or {}))


@contextmanager
def _one_rank(folder: str, device: torch.device, wanted: bool) -> Iterator[None]:
    if not wanted:
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{folder}/store", rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _frames(seed: int, height: int) -> Iterator[tuple[Any, float]]:
    scene = synthetic_video(seed, height=height, width=height * 4 // 3, seconds=1)
    return zip(scene.frames.transpose(0, 2, 3, 1), scene.times.tolist(), strict=True)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="a folder of videos or packed shards for the loader; default: synthetic clips")
    parser.add_argument("--out", type=Path, required=True, help="folder for the .json, the .txt and the .png")
    parser.add_argument("--workers", type=int, default=15, help="loader processes")
    parser.add_argument("--seconds", type=float, help=f"for everything; default {Settings().budget:.0f}")
    parser.add_argument("--reckon", action="store_true", help="measure nothing, reckon; needs no GPU")
    parser.add_argument("--smoke", action="store_true", help="in small, also on a CPU")
    options = parser.parse_args(arguments)
    if not (options.smoke or options.reckon or torch.cuda.is_available()):
        raise InputError(
            "there is no GPU here; --smoke runs everything in small on the CPU, --reckon says what to expect"
        )
    options.out.mkdir(parents=True, exist_ok=True)
    if options.reckon:
        rows = reckon({"siammae_micro_patch8": 4} if options.smoke else None)
        write_json(options.out / "gpu_reckoned.json", rows)
        ways = [f"{how}, {gpu}" for gpu in ("H100", "H200") for how in ("eager", "compiled")]
        shares = {f"{row['model']}, {way}": row[way]["kinds"] for row in rows for way in ways}
        bars(shares, options.out / "gpu_reckoned.png", "reckoned, not measured")
        print(markdown(rows))
        return
    device = best_device("cpu" if not torch.cuda.is_available() else "cuda")
    leave_cores(options.workers, device)
    settings = SMOKE if options.smoke else Settings()
    settings = replace(settings, budget=options.seconds or settings.budget)
    run = Run(settings, device, options.out, options.data, options.workers)
    run.go(run.jobs())
    profiles = {
        row["what"]: {**{kind: share * (1 - (row["idle"] or 0)) for kind, share in row["kinds"].items()},
                      "no kernel runs": row["idle"] or 0}
        for row in run.result["rows"] if "kinds" in row
    }  # fmt: skip
    if profiles:
        bars(profiles, options.out / "gpu_train.png", run.result["device"])
    print(table(run.result))


if __name__ == "__main__":
    main()
