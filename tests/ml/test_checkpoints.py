"""Checkpoints, loss logs, samples, exports: what is written can be read, and what is not ours is refused in words."""

import errno
import os
import pickle
import shutil
import subprocess

import numpy as np
import pytest
import torch

from common.errors import InputError
from ml.checkpoints import check_whole, find_checkpoint, load_model, load_run, newest_whole, save_checkpoint, save_last
from ml.logs import EpochLoss, append_line, cut_after, read_losses
from ml.samples import load_samples, save_samples
from tests.ml.small import run, tiny


def test_a_checkpoint_gives_the_model_back(tmp_path):
    model = tiny()
    path = tmp_path / "checkpoints" / "run" / "3.pt"
    save_checkpoint(path, dict(model=model.state_dict(), config=model.config, epoch=3))
    for name in (path, "run/3"):
        again, saved = load_model(find_checkpoint(name, tmp_path))
        assert saved["epoch"] == 3
        assert all(
            torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True)
        )
    with pytest.raises(InputError, match="there are no runs"):
        find_checkpoint("walk", tmp_path)
    assert [p.name for p in path.parent.iterdir()] == ["3.pt"]  # no temporary file stays


def test_what_is_no_checkpoint_is_said(tmp_path):
    path = tmp_path / "x.pt"
    torch.save({"model": tiny().state_dict()}, path)
    with pytest.raises(InputError, match="config, epoch"):
        load_run(path)
    torch.save(tiny(), path)
    with pytest.raises(InputError, match="state_dict"):  # a whole module: refused, with how to convert it
        load_run(path)
    model = tiny()
    state = model.state_dict()
    del state["decoder.norm.weight"]
    torch.save(dict(model=state, config=model.config, epoch=1), path)
    with pytest.raises(InputError, match=r"decoder\.norm\.weight"):
        load_model(path)


def test_an_interrupted_write_leaves_what_was(tmp_path):
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"epoch": 1})

    class Unwritable:
        def __reduce__(self):
            raise RuntimeError("power failure")

    with pytest.raises(RuntimeError):
        save_checkpoint(path, {"epoch": 2, "x": Unwritable()})
    assert torch.load(path, weights_only=True) == {"epoch": 1} and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(("number", "said"), [(errno.ENOSPC, "the disk is full"), (errno.EACCES, "Permission denied")])
def test_a_disk_that_refuses_is_said_and_nothing_is_lost(number, said, tmp_path, monkeypatch):
    """The file behind torch.save raises it in the middle of the second checkpoint."""
    save, count = torch.save, iter(range(100))

    class Refusing:
        def __init__(self, file):
            self.file, self.written = file, 0

        def write(self, data):
            self.written += len(data)
            if self.written > 5_000:
                raise OSError(number, os.strerror(number))
            return self.file.write(data)

    monkeypatch.setattr(torch, "save", lambda state, file: save(state, Refusing(file) if next(count) else file))
    with pytest.raises(InputError, match=f"could not be written .{said}.; the earlier ones are intact"):
        run(tmp_path)
    (folder,) = (tmp_path / "checkpoints").iterdir()
    assert newest_whole(folder)[1]["epoch"] == 1
    assert {path.name for path in folder.iterdir()} == {"config.json", "starts.jsonl", "last.pt"}


def test_a_really_full_disk(tmp_path):
    """The same on a file system of a few kilobytes, where one may be mounted."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        with pytest.raises(InputError, match="the disk is full"):
            run(tmp_path, save_minutes=0)
        (folder,) = (tmp_path / "checkpoints").iterdir()
        found = newest_whole(folder)
        assert found is not None and found[1]["step"] >= 1
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_folder_that_vanishes_is_said(tmp_path):
    with pytest.raises(InputError, match="has vanished"):
        run(tmp_path, score=lambda model: shutil.rmtree(tmp_path / "checkpoints") or {}, score_epochs=1)


def test_any_flipped_byte_is_noticed_or_harmless(tmp_path):
    model, path = tiny(), tmp_path / "1.pt"
    save_checkpoint(path, dict(model=model.state_dict(), config=model.config, epoch=1))
    good, content, noticed = load_run(path)["model"], path.read_bytes(), 0
    places = range(0, len(content), 997)
    for place in places:
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x40]) + content[place + 1 :])
        try:
            state = load_run(path)["model"]
        except InputError:
            noticed += 1
        else:
            assert all(torch.equal(state[name], good[name]) for name in good), place
    assert noticed > 0.8 * len(places)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="damaged"):
        check_whole(path)


def test_the_state_before_the_last_is_kept(tmp_path):
    model = tiny()
    for step in (1, 2, 3):
        save_last(tmp_path, dict(model=model.state_dict(), config=model.config, epoch=0, step=step))
    assert [load_run(tmp_path / name)["step"] for name in ("last.pt", "previous.pt")] == [3, 2]
    (tmp_path / "last.pt").write_bytes(b"")
    save_checkpoint(tmp_path / "7.pt", dict(model=model.state_dict(), config=model.config, epoch=7, step=9))
    said = []
    assert newest_whole(tmp_path, said.append)[0].name == "7.pt"  # newer than previous.pt
    assert "last.pt is empty" in said[0] and "7.pt instead, after 9 steps" in said[1]


def test_logs_are_read_as_they_are_written(tmp_path):
    path = tmp_path / "losses" / "run.txt"
    lines = [EpochLoss(1, 0.3, [0.1, 0.5]), EpochLoss(2, 1 / 3, [1 / 3]), EpochLoss(None, 2.0, [1e-7, 4.0])]
    for line in lines:
        append_line(path, line)
    assert read_losses(path) == lines
    assert path.read_text().splitlines()[0] == "Epoch 1 - Avg Loss: 0.3 Losses - [0.1, 0.5]"
    assert path.read_text().splitlines()[2] == "Avg Loss: 2.0 Losses - [1e-07, 4.0]"
    cut_after(path, 1)
    assert read_losses(path) == lines[:1]


def test_logs_of_the_public_replications_are_read(tmp_path):
    path = tmp_path / "log.txt"
    path.write_text(
        "Epoch 0 - Avg Loss: 0.75 Losses - [0.5, 1.0]\n"
        "\n"
        "Avg Loss: 0.5 Losses - [tensor(0.4, device='cuda:0'), tensor(0.6, grad_fn=<MseLossBackward0>)]\n"
        "Epoch 2 - Avg Loss: nan Losses - [np.float64(nan), np.float32(1.5e-3)]\n"
    )
    read = read_losses(path)
    assert [line.epoch for line in read] == [0, None, 2]
    assert read[0].losses == [0.5, 1.0] and read[1].losses == [0.4, 0.6] and read[2].losses[1] == 1.5e-3
    path.write_text("Epoch 0 - Avg Loss: 0.75 Losses - [0.5]\nepoch,loss\n")
    with pytest.raises(InputError, match="line 2"):
        read_losses(path)
    path.write_text("Epoch 0 - Avg Loss: 0.75 Losses - [half]\n")
    with pytest.raises(InputError, match="line 1"):
        read_losses(path)


def test_samples_are_plain_arrays_and_nothing_else_is_read(tmp_path):
    path = tmp_path / "samples.pickle"
    video = np.random.default_rng(0).integers(0, 256, (3, 2, 3, 16, 24), dtype=np.uint8)
    save_samples(path, video, np.zeros((3, 2)), ["a", "b", "c"])
    read = load_samples(path)
    assert np.array_equal(read["video"], video) and read["name"] == ["a", "b", "c"]
    with pytest.raises(InputError, match="not overwritten"):
        save_samples(path, video, np.zeros((3, 2)), ["a", "b", "c"])

    class Malice:
        def __reduce__(self):
            return (open, (str(tmp_path / "pwned"), "w"))

    for content in (
        pickle.dumps({"video": video, "x": Malice()}), pickle.dumps({"video": tiny()}), path.read_bytes()[:-50], b"",
        b"<html>", pickle.dumps([video]), pickle.dumps({"video": video.astype(float), "time": [], "name": []}),
        pickle.dumps({"video": video, "time": np.zeros((2, 2)), "name": ["a"]}),
    ):  # fmt: skip
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"samples\.pickle"):
            load_samples(path)
    assert not (tmp_path / "pwned").exists()
    with pytest.raises(InputError, match="siammae samples"):
        load_samples(tmp_path / "none.pickle")


def test_every_pickle_protocol_of_plain_arrays_is_read(tmp_path):
    video = np.zeros((1, 2, 3, 8, 8), dtype=np.uint8)
    for protocol in range(2, 6):
        (tmp_path / "x").write_bytes(pickle.dumps({"video": video, "time": np.zeros((1, 2)), "name": ["a"]}, protocol))
        assert load_samples(tmp_path / "x")["video"].shape == video.shape
