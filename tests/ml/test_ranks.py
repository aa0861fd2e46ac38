"""Several processes train what one would: the same losses and gradients, checkpoints that move between them."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from common.errors import InputError
from ml.checkpoints import load_run
from ml.devices import best_device
from ml.logs import read_steps
from ml.ranks import join_ranks

ROOT = Path(__file__).parents[2]
SETTINGS = ("--preset", "smoke", "--image-size", "32", "--num-epochs-per-save", "9", "--warmup-epochs", "0")


def command(clips, root, *more):
    return ["train", "--data", clips, "--root", root, "--device", "cpu", *SETTINGS, *more]


def numbers(root, *names):
    (log,) = (root / "losses").glob("*.jsonl")
    return [[step[name] for step in read_steps(log) if "loss" in step] for name in names]


def state(root):
    (path,) = (root / "checkpoints").glob("*/last.pt")
    return load_run(path)


STEP = ("--batch-size", "48", "--epochs", "1", "--prefix", "g")


def trained(trainer, clips, root, processes=1, strategy="ddp", more=()):
    """Losses and norms of its steps. The batch is that of a whole step, so each of two processes has half of it."""
    codes, said = trainer.run(*[command(clips, root, "--strategy", strategy, *more)] * processes, root=root)
    assert codes == [0] * processes, said
    return numbers(root, "loss", "grad_norm")


@pytest.fixture(scope="module")
def alone(trainer, clips, tmp_path_factory):
    """What one process comes to in twelve steps."""
    return trained(trainer, clips, tmp_path_factory.mktemp("alone"))


@pytest.mark.slow  # the checkpoints below move between both
@pytest.mark.parametrize("strategy", ["fsdp", "ddp"])
def test_two_processes_do_what_one_does_with_twice_the_batch(strategy, alone, trainer, clips, tmp_path):
    """The same losses, and the same gradient of one step of all 48 pairs: its first average."""
    losses, norms = alone
    their_losses, their_norms = trained(trainer, clips, tmp_path, 2, strategy)
    assert len(losses) == 12 and losses[:10] == pytest.approx(their_losses[:10], rel=1e-4)
    assert norms[0] == pytest.approx(their_norms[0], rel=1e-5)
    gradients = []
    for processes in (1, 2):
        trained(trainer, clips, tmp_path / str(processes), processes, strategy, STEP)
        saved = state(tmp_path / str(processes))["optimizer"]
        gradients.append(torch.cat([saved[name]["exp_avg"].flatten() for name in sorted(saved)]))
    assert (gradients[0] - gradients[1]).norm() <= 1e-5 * gradients[0].norm() and gradients[0].norm() > 0


def test_checkpoints_move_between_numbers_of_processes(alone, trainer, clips, tmp_path):
    """One process, then two (all divided), then two (gradients shared), then one: the losses of one alone."""
    stop = dict(root=tmp_path, signal=int(signal.SIGTERM))
    codes, said = trainer.run(command(clips, tmp_path), **stop, after=2)
    assert codes == [143], said
    for strategy, after in (("fsdp", 5), ("ddp", 8)):
        codes, said = trainer.run(*[command(clips, tmp_path, "--strategy", strategy)] * 2, **stop, after=after)
        assert codes == [143, 143] and "going on with" in said, said
    codes, said = trainer.run(command(clips, tmp_path), root=tmp_path)
    assert codes == [0], said
    steps, losses = numbers(tmp_path, "step", "loss")
    assert steps == list(range(1, 13)) and losses == pytest.approx(alone[0], rel=1e-3)


def test_features_and_validation_come_from_a_model_in_training(trainer, tmp_path):
    """`encode`, and the loss on shares of different lengths, under DDP and FSDP2 between two steps in every process."""
    program = tmp_path / "program.py"
    program.write_text(
        "import torch\n"
        "from mae.models_mae import MAEEncoder\n"
        "from ml.ranks import join_ranks, leave_ranks, wrap\n"
        "from ml.SiamMAE import SiamMAE\n"
        "from ml.validation import evaluate\n"
        "ranks, device = join_ranks('cpu')\n"
        "images = torch.randint(256, (1, 3, 32, 32), dtype=torch.uint8)\n"
        "videos = torch.randint(256, (5, 2, 3, 32, 32), generator=torch.Generator().manual_seed(1)).byte()\n"
        "batches = [dict(video=video[None], seed=torch.tensor([k])) for k, video in enumerate(videos)]\n"
        "for strategy in ('ddp', 'fsdp'):\n"
        "    torch.manual_seed(0)\n"
        "    model = SiamMAE(MAEEncoder(32, 8, 32, 2, 2), decoder_size=(32, 1, 2))\n"
        "    expected, whole = model.encode(images), evaluate(model, batches, 'cpu')\n"
        "    module = wrap(model, strategy, ranks, device)\n"
        "    module(images[:, None].expand(-1, 2, -1, -1, -1))[0].backward()\n"
        "    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)\n"
        "    torch.testing.assert_close(model.encode(images), expected)\n"
        "    shared = evaluate(model, batches[ranks.rank :: 2], 'cpu', ranks=ranks)\n"
        "    assert len(shared.losses) == 5 and abs(shared.mean - whole.mean) < 1e-6\n"
        f"    open(f'{tmp_path}/{{strategy}}{{ranks.rank}}', 'x').close()\n"
        "ranks.wait(); leave_ranks()\n"
    )
    codes, said = trainer.run(*[["python", program]] * 2, root=tmp_path)
    assert codes == [0, 0] and all((tmp_path / name).is_file() for name in ("ddp0", "ddp1", "fsdp0", "fsdp1")), said


def test_ranks_agree_on_masks_that_a_strategy_chooses(trainer, tmp_path):
    """After three steps with half a batch each, two ranks have the same heads and teachers and hide the same patches of
    the same pairs, bit by bit."""
    program = tmp_path / "program.py"
    program.write_text(
        "import torch\n"
        "from mae.models_mae import MAEEncoder\n"
        "from ml.optimisation import make_optimizer\n"
        "from ml.ranks import join_ranks, leave_ranks, wrap\n"
        "from ml.SiamMAE import SiamMAE\n"
        "from ml.step import training_step\n"
        "ranks, device = join_ranks('cpu')\n"
        "videos = torch.randint(256, (4, 4, 2, 3, 32, 32), generator=torch.Generator().manual_seed(1)).byte()\n"
        "for strategy in ('hard', 'uncertain', 'motion'):\n"
        "    torch.manual_seed(0)\n"
        "    encoder = MAEEncoder(32, 8, 32, 2, 2)\n"
        "    model = SiamMAE(encoder, decoder_size=(32, 1, 2), mask_ratio=0.75, mask_strategy=strategy).train()\n"
        "    module, optimizer = wrap(model, 'ddp', ranks, device), make_optimizer(model, 1e-3, 0.05)\n"
        "    for step in range(3):\n"
        "        model.before_step(step, 4)\n"
        "        batch = dict(video=videos[step][ranks.rank :: 2], seed=torch.arange(4)[ranks.rank :: 2])\n"
        "        training_step(module, [batch], optimizer, device=device, ranks=ranks)\n"
        "    model.before_step(3, 4)\n"
        "    scores = model.hiding.scores(model, model.normalize(videos[3]))\n"
        "    for mine in (scores, model.draw_noise(videos[3], torch.arange(4)), *model.state_dict().values()):\n"
        "        both = [torch.empty_like(mine) for _ in range(2)]\n"
        "        torch.distributed.all_gather(both, mine.contiguous())\n"
        "        assert torch.equal(*both), strategy\n"
        "    assert scores.std() > 0, strategy\n"
        "    noise = [model.train(mode).draw_noise(videos[3], torch.arange(4)) for mode in (True, False)]\n"
        "    assert not torch.equal(*noise), strategy\n"
        f"    open(f'{tmp_path}/{{strategy}}{{ranks.rank}}', 'x').close()\n"
        "ranks.wait(); leave_ranks()\n"
    )
    codes, said = trainer.run(*[["python", program]] * 2, root=tmp_path)
    names = [f"{strategy}{rank}" for strategy in ("hard", "uncertain", "motion") for rank in (0, 1)]
    assert codes == [0, 0] and all((tmp_path / name).is_file() for name in names), said


def torchrun(*words, options=()):
    """Start a program, or `-m` a module, in two processes of torchrun's own."""
    return subprocess.Popen(
        [
            sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d",
            "--rdzv-endpoint", "127.0.0.1:0", *options, *map(str, words),
        ],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def wait_for_steps(root, count, process):
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and process.poll() is None:
        if sum(log.read_bytes().count(b"\n") for log in (root / "losses").glob("*.jsonl")) >= count:
            return
        time.sleep(0.02)
    raise AssertionError(f"no {count} steps: {process.communicate(timeout=10)}")


@pytest.mark.slow
def test_a_signal_to_torchrun_itself_saves_and_goes_on(clips, tmp_path):
    """As Slurm sends it, SIGUSR1 to the launcher: it passes it on, both processes save, and the same line goes on."""
    words = ["-m", "cli.main", *command(clips, tmp_path, "--epochs", "4")]
    options = ["--signals-to-handle", "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1", "--shutdown-timeout", "60"]
    process = torchrun(*words, options=options)
    wait_for_steps(tmp_path, 3, process)
    process.send_signal(signal.SIGUSR1)
    _, said = process.communicate(timeout=90)
    assert process.returncode != 0 and "SIGUSR1: stopping after this step" in said
    stopped = state(tmp_path)["step"]
    assert 3 <= stopped < 24
    process = torchrun(*words, options=options)
    said, complained = process.communicate(timeout=120)
    assert process.returncode == 0 and f"after step {stopped}" in said, complained[-2000:]
    assert numbers(tmp_path, "step") == [list(range(1, 25))]


@pytest.mark.slow
def test_a_process_that_dies_ends_the_others_within_a_minute(clips, tmp_path):
    """Killed from outside; torchrun says which one, and the one that is left does not wait for ever."""
    process = torchrun("-m", "cli.main", *command(clips, tmp_path, "--epochs", "200"))
    wait_for_steps(tmp_path, 3, process)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    start = time.monotonic()
    os.kill(int(children[1]), signal.SIGKILL)
    _, said = process.communicate(timeout=90)
    assert process.returncode != 0 and time.monotonic() - start < 60
    assert "Signal 9 (SIGKILL)" in said


@pytest.mark.parametrize(("asked", "own"), [(None, 3), ("cuda", 3), ("cuda:5", 5)])
def test_each_process_of_torchrun_takes_a_gpu_of_its_own(asked, own, monkeypatch):
    """Eight GPUs are pretended; commands that train and those that do not, ask in the same way."""
    chosen = []
    for name, value in dict(RANK=3, LOCAL_RANK=3, WORLD_SIZE=8, MASTER_ADDR="localhost", MASTER_PORT=1).items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    monkeypatch.setattr("torch.cuda.current_device", lambda: 0)
    monkeypatch.setattr("torch.cuda.set_device", chosen.append)
    monkeypatch.setattr("torch.distributed.init_process_group", lambda *_, **__: None)
    expected = torch.device("cuda", own)
    assert best_device(asked) == expected and join_ranks(asked)[1] == expected and chosen == [expected]


def test_more_processes_than_gpus_is_one_sentence(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(InputError, match=r"more processes here than there are GPUs \(2\)"):
        best_device("cuda")


def test_a_rank_set_by_accident_is_one_sentence(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    with pytest.raises(InputError, match="not MASTER_ADDR and MASTER_PORT"):
        join_ranks("cpu")


def test_a_process_that_waits_alone_says_for_whom(trainer, tmp_path):
    """The first and the second, each of a run of its own: nobody else comes. Their patience is cut to 2 s."""
    ports = [free_port(), free_port()]
    for rank, port in enumerate(ports):
        (tmp_path / f"{rank}.py").write_text(
            "import datetime, os, ml.ranks\n"
            f"os.environ.update(RANK='{rank}', WORLD_SIZE='2', MASTER_PORT='{port}')\n"
            "ml.ranks.ANSWER_PATIENCE, ml.ranks.SAYS_SO_AFTER = datetime.timedelta(seconds=2), 0.5\n"
            "try: ml.ranks.join_ranks('cpu')\n"
            "except ml.ranks.InputError as error: print(error)"
        )
    codes, said = trainer.run(*(["python", tmp_path / f"{rank}.py"] for rank in (0, 1)), root=tmp_path)
    assert codes == [0, 0], said
    for rank, port in enumerate(ports):
        assert f"process {rank} of 2 waits at 127.0.0.1:{port}" in said, said
        assert f"process {rank} did not meet the others" in said, said


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])
