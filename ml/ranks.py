"""The processes that train one model together: torch.distributed as it is, and a null object for one process alone.

`torchrun` starts them and says in the environment who is who. What they agree about goes over gloo on the CPU,
gradients over nccl where there are GPUs.
"""

import os
import re
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Literal, TypeVar, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn

from common.errors import InputError
from ml.devices import Device, best_device, in_bfloat16
from ml.SiamMAE import Model

Strategy = Literal["ddp", "fsdp"]
T = TypeVar("T")
ANSWER_PATIENCE = timedelta(minutes=10)  # with a rank that does not come, or does not answer
SAYS_SO_AFTER = 5.0  # seconds of waiting for the others


class Ranks:
    """This process among those of a run: `rank` of `world_size`. Alone, every method is free of effects and costs."""

    def __init__(self) -> None:
        together = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if together else 0
        self.world_size = dist.get_world_size() if together else 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and speaks."""
        return self.rank == 0

    def largest(self, *values: int) -> tuple[int, ...]:
        """Of each value the largest in any process; the same answer in all of them."""
        if self.world_size == 1:
            return values
        tensor = torch.tensor(values)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tuple(tensor.tolist())

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the processes of a tensor on any device; in place."""
        if self.world_size > 1:
            dist.all_reduce(values)
            values /= self.world_size
        return values

    def agree(self, value: T) -> T:
        """The first process's value, in all of them."""
        return self.gather(value)[0]

    def gather(self, value: T) -> list[T]:
        """Every process's value, in the order of ranks."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Return when every process has come here."""
        if self.world_size > 1:
            self.gather(None)

    @contextmanager
    def together(self) -> Iterator[None]:
        """An error that one process meets here is raised in all of them, so that none waits for it for ever."""
        error: BaseException | None = None
        try:
            yield
        except Exception as caught:
            error = caught
        said = [text for text in self.gather(str(error) if error else None) if text is not None]
        if error:
            raise error
        if said:
            raise InputError(said[0])

    @contextmanager
    def outliving_others(self) -> Iterator[None]:
        """What torch says when another process has gone becomes one sentence."""
        try:
            yield
        except RuntimeError as error:
            if self.world_size > 1 and re.search("gloo|nccl|connection|peer|socket", str(error), re.IGNORECASE):
                raise InputError(
                    f"process {self.rank}: another process of the run has ended or does not answer; why is in what it "
                    "said itself, above"
                ) from error
            raise


def join_ranks(device: Device = None) -> tuple[Ranks, torch.device]:
    """Meet the other processes that `torchrun` started, if any; which one this is, and the device that is its own.

    An InputError where the environment names a rank but no place to meet: RANK and WORLD_SIZE were set by accident.
    """
    own, environ = best_device(device), os.environ
    if "WORLD_SIZE" in environ and "RANK" in environ and not dist.is_initialized():
        if absent := {"MASTER_ADDR", "MASTER_PORT"} - environ.keys():
            raise InputError(
                f"RANK and WORLD_SIZE are set, but not {' and '.join(sorted(absent))}: start several processes with "
                "torchrun, or unset RANK and WORLD_SIZE to train in this one alone"
            )
        if own.type == "cuda":
            torch.cuda.set_device(own)
        place = f"{environ['MASTER_ADDR']}:{environ['MASTER_PORT']}"
        say = f"process {environ['RANK']} of {environ['WORLD_SIZE']} waits at {place} for the others (RANK is set)"
        waiting = threading.Timer(SAYS_SO_AFTER, print, [say], dict(file=sys.stderr, flush=True))
        waiting.daemon = True
        waiting.start()
        try:
            dist.init_process_group("cpu:gloo,cuda:nccl" if own.type == "cuda" else "gloo", timeout=ANSWER_PATIENCE)
        except (dist.DistError, ValueError) as error:
            raise InputError(f"process {environ['RANK']} did not meet the others at {place}: {error}") from error
        finally:
            waiting.cancel()
    return Ranks(), own


def leave_ranks() -> None:
    """Take leave of the other processes, if any."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def wrap(model: nn.Module, strategy: Strategy, ranks: Ranks, device: torch.device) -> nn.Module:
    """The module to call in training: the model itself, or with its gradients shared (DDP), or everything (FSDP2).

    `fsdp` divides parameters, gradients and optimiser state over the processes, block by block; the model is changed
    in place and `encode` works on it as before.
    """
    if strategy not in get_args(Strategy):
        raise InputError(f"strategy {strategy!r} is unknown; there are {', '.join(get_args(Strategy))}")
    return model if ranks.world_size == 1 else shared(model, strategy, ranks.world_size, device)


def shared(model: nn.Module, strategy: Strategy, world_size: int, device: torch.device) -> nn.Module:
    """What `wrap` gives among several processes; a measurement may have it in one alone."""
    if strategy == "ddp":
        from torch.nn.parallel import DistributedDataParallel

        ids = [device.index] if device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(device.type, (world_size,))
    gathered = torch.bfloat16 if in_bfloat16(device) else None  # as the blocks compute; sums of gradients are float32
    policy = MixedPrecisionPolicy(param_dtype=gathered, reduce_dtype=gathered and torch.float32)
    for part in model.modules():
        if isinstance(part, nn.ModuleList):
            for block in part:
                fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh)
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")  # never changed in place here
    register_fsdp_forward_method(model, "encode")
    return model


def unwrapped(module: nn.Module) -> Model:
    """The model that `wrap` was given."""
    inner: Any = getattr(module, "module", module)  # DDP holds it there
    return inner


def compile_blocks(model: nn.Module, backend: str = "inductor") -> None:
    """Compile block by block, before `wrap`: the blocks of a kind share one graph, which is traced in seconds. Lengths
    are constants of it, so that the few visible tokens do not make all shapes dynamic."""
    for part in model.modules():
        if isinstance(part, nn.ModuleList):
            for block in part:
                block.compile(backend=backend, dynamic=False)


def compile_as_graphs(model: nn.Module) -> None:
    """Compile the model as one graph, which CUDA replays without its host. What a replay gives, gradients too, lies
    where the next replay writes: a step must be one batch."""
    model.compile(mode="reduce-overhead", dynamic=False)


@contextmanager
def sharing(module: Any, wanted: bool) -> Iterator[None]:
    """Whether the backward pass inside shares its gradients: only the last one of a step has to."""
    if hasattr(module, "set_requires_gradient_sync"):
        module.set_requires_gradient_sync(wanted)
        yield
    elif hasattr(module, "no_sync") and not wanted:
        with module.no_sync():
            yield
    else:
        yield


def whole(value: Tensor) -> Tensor:
    """A tensor that may be divided over processes (FSDP2), whole; every process has to ask for it."""
    divided: Any = value
    return divided.full_tensor() if hasattr(value, "full_tensor") else value


def like(value: Tensor, model: Any, *, whole: bool = False) -> Tensor:
    """A whole tensor, divided over the processes as `model` is (or, with `whole`, in each of them), on its device."""
    if not hasattr(model, "device_mesh"):
        return value.to(model.device)
    from torch.distributed.tensor import DTensor, Replicate, distribute_tensor

    if whole:
        return DTensor.from_local(value, model.device_mesh, [Replicate()], run_check=False)
    return distribute_tensor(value.to(model.device), model.device_mesh, model.placements)
