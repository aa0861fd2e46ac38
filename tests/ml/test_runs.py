"""Which run a command goes on with, what it says of the others, and what it refuses before anything is touched."""

import re

import pytest

from common.errors import InputError
from mae.models_mae import MAEEncoder
from ml.checkpoints import load_run, save_last
from ml.logs import read_steps
from ml.SiamMAE import SiamMAE
from ml.training import train
from tests.ml.small import Pairs, Stop, tiny

CHANGE = "peak_lr was 1.171875e-06 and is now 0.00078125"  # a base_lr of 0.1, at 2 pairs a step


def start(root, loader=None, model=None, resume="auto", **options):
    """One epoch of three steps, saved after each; the run's name."""
    options = dict(epochs=1, save_minutes=0, device="cpu", root=root, progress=False, figures=False, **options)
    return train(model or tiny(), loader or Pairs(), resume=resume, **options)


def stopped(root, **options):
    """The name of a run that was stopped after two steps."""
    with pytest.raises(Stop):
        start(root, Pairs(stop=(1, 2)), **options)
    return max(path.parent.name for path in root.glob("checkpoints/*/last.pt"))


def runs(root):
    return sorted(path.name for path in (root / "checkpoints").iterdir())


def test_one_that_differs_is_named_and_another_begun(tmp_path, capsys):
    run = stopped(tmp_path)
    other = start(tmp_path, base_lr=0.1)
    sentence = f"{run} is unfinished, but {CHANGE}; beginning a new run (--allow-changes goes"
    assert sentence in capsys.readouterr().out and other != run
    assert start(tmp_path) == run  # the same configuration as at first: its own run goes on, and nothing is to be said
    assert "unfinished" not in capsys.readouterr().out
    assert len({start(tmp_path), *runs(tmp_path)}) == 3  # a finished run: a new one


def test_allowed_changes_go_on_and_are_the_configuration_from_then_on(tmp_path, capsys):
    run = stopped(tmp_path)
    with pytest.raises(Stop):
        start(tmp_path, Pairs(stop=(1, 2)), base_lr=0.1, allow_changes=True)
    assert f"although the configuration differs: {CHANGE}" in capsys.readouterr().out
    assert "1.171875e-06" in (tmp_path / "checkpoints" / run / "config_before.json").read_text()
    with pytest.raises(InputError, match=CHANGE):  # nothing was saved with it yet
        start(tmp_path, base_lr=0.1)
    assert start(tmp_path, base_lr=0.1, allow_changes=True) == run and runs(tmp_path) == [run]


def test_a_prefix_pins_the_run(tmp_path, capsys):
    """As docs/train.sbatch gives it: another configuration is refused, and a finished run is not begun again."""
    run = stopped(tmp_path, prefix="slurm_7_")
    start(tmp_path, base_lr=0.1, prefix="slurm_8_")
    with pytest.raises(InputError, match=rf"{run} is unfinished, but peak_lr was.*--allow-changes.*another prefix"):
        start(tmp_path, base_lr=0.1, prefix="slurm_7_", resume="once")
    assert start(tmp_path, prefix="slurm_7_", resume="once") == run
    before, steps = runs(tmp_path), read_steps(tmp_path / "losses" / f"{run}.jsonl")
    capsys.readouterr()
    assert start(tmp_path, prefix="slurm_7_", resume="once") == run and runs(tmp_path) == before
    assert f"{run} is finished: nothing left to do" in capsys.readouterr().out
    assert read_steps(tmp_path / "losses" / f"{run}.jsonl") == steps
    assert start(tmp_path, prefix="slurm_7_") != run  # auto begins a second one


def test_a_run_that_was_killed_before_its_last_file_is_finished_not_begun_again(tmp_path):
    run = start(tmp_path)
    last = tmp_path / "checkpoints" / run / "1.pt"
    last.unlink()
    assert start(tmp_path) == run and last.exists() and runs(tmp_path) == [run]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"model": {}, "train": null, "run": null}', "\0"])
def test_a_damaged_configuration_is_passed_over(content, tmp_path, capsys):
    run = stopped(tmp_path)
    config = tmp_path / "checkpoints" / run / "config.json"
    config.write_text(content)
    assert start(tmp_path) != run
    assert f"config.json is empty or damaged: passed over; --resume {run} goes on with it" in capsys.readouterr().out
    assert start(tmp_path, resume=run) == run and config.with_name("config_before.json").read_text() == content


def test_nothing_is_begun_over_a_run_whose_states_are_all_damaged(tmp_path):
    run = stopped(tmp_path)
    folder, log = tmp_path / "checkpoints" / run, tmp_path / "losses" / f"{run}.jsonl"
    content = log.read_text()
    for name in ("last.pt", "previous.pt"):
        (folder / name).write_bytes(b"rotten")
    for resume in ("auto", run):
        with pytest.raises(InputError, match=f"{run} holds no checkpoint that is whole"):
            start(tmp_path, resume=resume)
    assert log.read_text() == content and (folder / "last.pt").read_bytes() == b"rotten"


def test_what_cannot_be_gone_on_with_is_said_before_anything_else(tmp_path, capsys):
    run = stopped(tmp_path / "a")
    log = tmp_path / "a" / "losses" / f"{run}.jsonl"
    content = log.read_text()
    other = SiamMAE(MAEEncoder(16, 8, 16, 1, 2), decoder_kind="cross", decoder_size=(16, 1, 2))
    with pytest.raises(InputError, match=r"another model: decoder_kind was 'cross-self' and is now 'cross'"):
        start(tmp_path / "a", model=other, resume=run, allow_changes=True)
    path = tmp_path / "a" / "checkpoints" / run / "last.pt"
    with pytest.raises(InputError, match=f"below another folder.*--root {re.escape(str(tmp_path))}/a$"):
        start(tmp_path / "b", resume=path)
    save_last(tmp_path, load_run(path))
    with pytest.raises(InputError, match=f"does not lie in the folder of its run, .*{run}"):
        start(tmp_path / "a", resume=tmp_path / "last.pt")
    assert "going on" not in capsys.readouterr().out and log.read_text() == content


def test_averages_that_a_run_did_not_keep_begin_at_its_weights(tmp_path, capsys):
    run = stopped(tmp_path)
    weights = load_run(tmp_path / "checkpoints" / run / "last.pt")["model"]
    start(tmp_path, resume=run, allow_changes=True, ema=0.5)
    assert "the averages (ema) begin at its weights" in capsys.readouterr().out
    state = load_run(tmp_path / "checkpoints" / run / "last.pt")
    for name, average in state["averaged"].items():
        assert average.allclose(0.5 * weights[name] + 0.5 * state["model"][name])
    assert state["averaged"]
