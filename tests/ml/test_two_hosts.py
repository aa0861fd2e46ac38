"""Two hosts, network namespaces of this machine joined by a virtual cable, train together; one of them dies."""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from ml.logs import read_steps

ROOT = Path(__file__).parents[2]
IP = shutil.which("ip", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
STEPS = 48
SETTINGS = ("--preset", "smoke", "--image-size", "32", "--epochs", "8", "--num-epochs-per-save", "8", "--device", "cpu")


def ip(*words):
    return subprocess.run([IP, *words], capture_output=True, text=True, timeout=30)


@pytest.fixture
def hosts():
    """Two hosts as (namespace, address, interface); whatever happens they and what runs in them are gone afterwards."""
    if IP is None:
        pytest.skip("there is no `ip` to make network namespaces with")
    names = [f"siammae{os.getpid()}{letter}" for letter in "ab"]
    made = ip("netns", "add", names[0])
    if made.returncode:
        pytest.skip(f"network namespaces are not allowed here: {made.stderr.strip()}")
    cable = [f"sv{os.getpid() % 100000}{letter}" for letter in "ab"]
    addresses = ["10.213.77.1", "10.213.77.2"]
    try:
        steps = [("netns", "add", names[1]), ("link", "add", cable[0], "type", "veth", "peer", "name", cable[1])]
        for name, interface, address in zip(names, cable, addresses, strict=True):
            inside = ("netns", "exec", name, IP)
            steps += [
                ("link", "set", interface, "netns", name),
                (*inside, "addr", "add", f"{address}/24", "dev", interface),
                (*inside, "link", "set", interface, "up"),
                (*inside, "link", "set", "lo", "up"),
            ]
        for step in steps:
            done = ip(*step)
            if done.returncode and step[1] == "add":
                pytest.skip(f"a virtual network is not allowed here: {done.stderr.strip()}")
            assert not done.returncode, f"ip {' '.join(step)}: {done.stderr}"
        yield list(zip(names, addresses, cable, strict=True))
    finally:
        for name in names:
            for pid in ip("netns", "pids", name).stdout.split():
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            ip("netns", "del", name)
        ip("link", "del", cable[0])


def torchrun(host, store, output, *words):
    """One of the two torchruns, in its host; the one at the store's address holds the store."""
    name, address, interface = host
    options = f"is_host={int(address == store)},last_call_timeout=3,keep_alive_interval=1,keep_alive_max_attempt=3"
    with open(output, "w") as said:
        return subprocess.Popen(
            [
                IP, "netns", "exec", name, sys.executable, "-m", "torch.distributed.run", "--nnodes=1:2",
                "--nproc-per-node=1", "--max-restarts=3", "--rdzv-backend=c10d", f"--rdzv-endpoint={store}:29401",
                "--rdzv-id=two-hosts", f"--rdzv-conf={options}", f"--local-addr={address}", *map(str, words),
            ],
            cwd=ROOT, stdout=said, stderr=said, start_new_session=True,
            env={
                **os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": interface,
            },
        )  # fmt: skip


def losses(root):
    logs = list((root / "losses").glob("*.jsonl"))
    return {step["step"]: step["loss"] for log in logs for step in read_steps(log) if "loss" in step}


def lines_of_steps(root):
    logs = list((root / "losses").glob("*.jsonl"))
    return [step["step"] for log in logs for step in read_steps(log) if "loss" in step]


@pytest.mark.slow
def test_a_host_dies_and_the_other_goes_on_alone(hosts, trainer, clips, tmp_path):
    """4 + 4 pairs a step, then 8 in one process, by torchrun's own restart: the losses of an undisturbed run."""
    root, alone = tmp_path / "two", tmp_path / "alone"
    first, second = hosts
    words = ["-m", "cli.main", "train", "--data", clips, "--root", root, *SETTINGS, "--save-minutes", "0"]
    said = [tmp_path / "first.txt", tmp_path / "second.txt"]
    processes = [torchrun(host, first[1], output, *words) for host, output in zip(hosts, said, strict=True)]
    try:
        deadline = time.monotonic() + 240
        while not list(
            (root / "checkpoints").glob("*/last.pt")
        ):  # saved where the processes agree: at every tenth step and an epoch's end
            assert time.monotonic() < deadline and processes[0].poll() is None, said[0].read_text()[-3000:]
            time.sleep(0.02)
        os.killpg(processes[1].pid, signal.SIGKILL)
        for pid in ip("netns", "pids", second[0]).stdout.split():  # torchrun's own children have their own sessions
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        done = len(lines_of_steps(root))
        assert processes[0].wait(240) == 0, said[0].read_text()[-3000:]
    finally:
        for process in processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    text = "".join(output.read_text() for output in said)
    assert 6 <= done < STEPS and "(2 processes × 1 batch × 4)" in text and "(1 process × 1 batch × 8)" in text
    assert "another process of the run has ended" in text and "going on with" in text
    assert lines_of_steps(root) == list(range(1, STEPS + 1))

    code, complained = trainer.run(["train", "--data", clips, "--root", alone, *SETTINGS], root=alone)
    assert code == [0], complained
    assert [losses(root)[k] for k in range(1, STEPS + 1)] == pytest.approx(
        [losses(alone)[k] for k in range(1, STEPS + 1)], rel=1e-3
    )
