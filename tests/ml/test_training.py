"""Training: it learns, it repeats itself exactly, its logs say what happened, and what goes wrong is said."""

import json
import os
import sys
import threading
import types
from pathlib import Path

import pytest
import torch

from common.errors import InputError
from dataset_loader import get_kinetics_dataset, make_loader
from dataset_loader.synthetic import synthetic_video
from mae.models_mae import MAEEncoder
from ml.checkpoints import find_checkpoint, load_model, load_run, newest_whole
from ml.guards import Divergence, StopSignals
from ml.logs import read_losses
from ml.optimisation import make_optimizer, make_scheduler
from ml.ranks import Ranks
from ml.reporting import StepRecord
from ml.SiamMAE import SiamMAE
from ml.step import StepResult
from ml.utils import evaluate, train_one_epoch
from tests.ml.small import Pairs, losses, run, tiny

GOLDEN = Path(__file__).parents[1] / "golden" / "ten_steps.txt"


def small(seed=0, mask_ratio=0.75):
    torch.manual_seed(seed)
    encoder = MAEEncoder(img_size=48, patch_size=8, embed_dim=64, depth=3, num_heads=4)
    return SiamMAE(encoder, mask_ratio, decoder_size=(64, 2, 4))


def loader(clips, workers=0):
    return make_loader(get_kinetics_dataset(clips, image_size=48, repeated_sampling=2), 4, workers=workers)


def pairs(count=4, size=48):
    """Pairs [count, 2, 3, size, size] of the synthetic world, not through a decoder: the same on every machine."""
    scenes = [synthetic_video(seed, height=size, width=size, times=[0.0, 0.2]) for seed in range(count)]
    return torch.stack([torch.from_numpy(scene.frames) for scene in scenes])


def test_ten_steps_give_the_recorded_losses():
    """Renew after an intended change of the arithmetic: RENEW_GOLDEN=1 make test, and say so in the commit."""
    model, video = small(), pairs(8)
    optimizer = make_optimizer(model, 1e-3)
    batches = [{"video": video[k % 2 :: 2], "seed": torch.arange(4) + 10 * k} for k in range(10)]
    losses = train_one_epoch(batches, optimizer, make_scheduler(optimizer, 2, 10), "cpu", model)
    if os.environ.get("RENEW_GOLDEN"):
        GOLDEN.write_text("".join(f"{loss:.6f}\n" for loss in losses))
    expected = [float(line) for line in GOLDEN.read_text().splitlines()]
    assert losses == pytest.approx(expected, rel=1e-4), "see this test's docstring"


def test_one_seed_gives_one_log_with_and_without_workers(clips, tmp_path):
    texts = []
    for workers in (0, 0, 2):
        name, _ = run(tmp_path, loader(clips, workers), small())
        texts.append((tmp_path / "losses" / f"{name}.txt").read_text())
    assert texts[0] == texts[1] == texts[2] and texts[0].count("\n") == 2


def test_what_a_run_leaves_behind(clips, tmp_path):
    config = {"note": "plain values"}
    name, _ = run(
        tmp_path, loader(clips), small(), epochs=3, prefix="mask75_", num_epochs_per_save=2, config=config, figures=True
    )
    assert name.startswith("mask75_20") and ":" not in name
    lines = (tmp_path / "losses" / f"{name}.txt").read_text().splitlines()
    assert [line.split(" - ")[0] for line in lines] == ["Epoch 1", "Epoch 2", "Epoch 3"]
    assert lines[0].startswith("Epoch 1 - Avg Loss: ") and " Losses - [" in lines[0]
    epochs = read_losses(tmp_path / "losses" / f"{name}.txt")
    assert [len(e.losses) for e in epochs] == [3] * 3  # 6 clips × 2 pairs in batches of 4
    assert epochs[1].mean == pytest.approx(sum(epochs[1].losses) / 3)
    folder = tmp_path / "checkpoints" / name
    expected = {"2.pt", "3.pt", "last.pt", "previous.pt", "2.png", "3.png"}  # the last epoch is kept
    assert {p.name for p in folder.iterdir()} == expected | {"starts.jsonl", "config.json"}
    assert (tmp_path / "losses" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    saved = torch.load(folder / "last.pt", weights_only=True)
    assert saved["epoch"] == 3 and saved["step"] == 9 and saved["run_config"] == config
    assert json.loads((folder / "config.json").read_text())["model"]["mask_ratio"] == 0.75
    model, _ = load_model(find_checkpoint(f"{name}/2", tmp_path))
    assert not model.training and model.config == small().config


def test_the_rate_is_a_function_of_the_step(tmp_path):
    """And what is recorded is the real peak, given or from the base rate."""
    name, steps = run(tmp_path, base_lr=1e-2, warmup_epochs=1)
    peak = 1e-2 * 2 / 256
    rates = [step["lr"] for step in steps if "lr" in step]
    assert rates == pytest.approx([0, peak / 3, 2 * peak / 3, peak, 0.75 * peak, 0.25 * peak])
    config = json.loads((tmp_path / "checkpoints" / name / "config.json").read_text())
    assert config["train"]["peak_lr"] == peak and "base_lr" not in config["train"]
    assert run(tmp_path, peak_lr=peak, warmup_epochs=1)[1][4]["lr"] == peak


def test_evaluation_repeats_and_weighs_a_ragged_batch(clips):
    dataset = get_kinetics_dataset(clips, image_size=48, augment=False)
    ragged = make_loader(dataset, 4, shuffle=False, drop_last=False)
    single = make_loader(dataset, 1, shuffle=False, drop_last=False)
    model = small()
    first = evaluate(model, ragged, "cpu")
    assert first == evaluate(model, ragged, "cpu") and len(first.losses) == 2  # 4 pairs and 2
    assert first.mean == pytest.approx(evaluate(model, single, "cpu").mean, rel=1e-5)
    assert first.mean != pytest.approx(sum(first.losses) / 2, rel=1e-6)
    assert all(p.grad is None for p in model.parameters())


class TestNaN:
    @staticmethod
    def poisoned(at, what):
        """A model whose loss, or gradient, is NaN at some of its steps."""
        model, count = tiny(), iter(range(1, 1000))
        forward = model.forward

        def poison(*args, **kw):
            loss, prediction, mask = forward(*args, **kw)
            if next(count) in at:
                loss = loss * torch.nan if what == "loss" else loss * (loss / loss.detach()) ** torch.inf
            return loss, prediction, mask

        model.forward = poison
        return model

    @pytest.mark.parametrize("what", ["loss", "gradient"])
    def test_it_ends_the_run_in_words(self, what, tmp_path):
        with pytest.raises(InputError, match=rf"{what}.* at step 2 of epoch 2 \(learning rate .*a, b in.*clip_grad"):
            run(tmp_path, model=self.poisoned({5}, what))
        (folder,) = (tmp_path / "checkpoints").iterdir()
        _, state = newest_whole(folder)
        assert state["step"] == 3 and all(value.isfinite().all() for value in state["model"].values())

    def test_a_few_steps_can_be_skipped(self, tmp_path, capsys):
        name, steps = run(tmp_path, model=self.poisoned({2, 5}, "loss"), skip_nonfinite=2)
        assert [step["step"] for step in steps if step.get("skipped")] == [2, 5]
        assert steps[1]["loss"] == "nan"
        assert [len(line.losses) for line in read_losses(tmp_path / "losses" / f"{name}.txt")] == [2, 2]
        state = load_run(tmp_path / "checkpoints" / name / "last.pt")
        assert state["skipped"] == 2 and all(value.isfinite().all() for value in state["model"].values())
        assert "skipped, 1 of 2" in capsys.readouterr().err
        with pytest.raises(InputError, match="loss is nan at step 2 of epoch 2"):
            run(tmp_path / "b", model=self.poisoned({2, 5}, "loss"), skip_nonfinite=1)

    def test_on_one_rank_it_makes_every_rank_skip_the_step(self, tmp_path, monkeypatch):
        """What decides is the mean over the ranks: here another one's loss is not finite, and this one's is."""
        monkeypatch.setattr(Ranks, "mean", lambda self, values: values.fill_(float("inf")))
        model = tiny()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        with pytest.raises(InputError, match="no step whose loss is finite"):
            run(tmp_path, model=model, warmup_epochs=0, skip_nonfinite=3)
        assert all(value.equal(before[name]) for name, value in model.state_dict().items())

    def test_a_loss_that_runs_away_is_said(self, capsys):
        watch = Divergence()
        for step in range(460):
            loss = 0.5 + 0.1 * (step % 3) if step < 400 else 1.9
            watch.on_step(StepRecord(step, 1, step, 0, 2, 0, [], StepResult(2, torch.tensor([loss, 1, loss]), None)))
            assert step != 399 or capsys.readouterr().err == ""
        assert capsys.readouterr().err.count("seems to diverge") == 1


def test_the_best_epoch_on_held_out_pairs_is_kept_and_loaded_as_it_was_chosen(tmp_path, capsys):
    """By the averaged weights, where these are kept: everything that loads it gets the loss that was recorded."""
    name, steps = run(tmp_path, validation=Pairs(), ema=0.5, epochs=3)
    told = [step["validation_loss"] for step in steps if "validation_loss" in step]
    lines = read_losses(tmp_path / "test_losses" / f"{name}.txt")
    assert [line.epoch for line in lines] == [1, 2, 3] and [line.mean for line in lines] == told
    path = tmp_path / "checkpoints" / name / "best.pt"
    best = load_run(path)
    assert best["epoch"] == 1 + told.index(min(told)) and best["best"] == min(told)
    capsys.readouterr()
    model, _ = load_model(path)
    assert "averaged weights (EMA)" in capsys.readouterr().out
    held_out = Pairs()
    held_out.set_epoch(0)
    assert evaluate(model, held_out, "cpu").mean == min(told)
    raw, _ = load_model(path, averaged=False)
    assert evaluate(raw, held_out, "cpu").mean != min(told) and capsys.readouterr().out == ""
    other, _ = run(tmp_path)
    with pytest.raises(InputError, match="trained without ema"):
        load_model(tmp_path / "checkpoints" / other / "last.pt", averaged=True)


def test_a_function_that_is_handed_in_scores_the_model(tmp_path):
    seen = []

    def score(model):
        seen.append((model.training, model.encode(torch.zeros(1, 3, 16, 16, dtype=torch.uint8)).shape))
        return {"J&F": len(seen)}

    _, steps = run(tmp_path, score=score, score_epochs=1)
    assert [step["J&F"] for step in steps if "J&F" in step] == [1.0, 2.0]
    assert seen == [(False, (1, 2, 2, 16))] * 2


def test_it_runs_in_a_thread(tmp_path):
    """Where signals cannot be listened to, it trains without."""
    done = []
    thread = threading.Thread(target=lambda: done.append(run(tmp_path)))
    thread.start()
    thread.join()
    assert len(done) == 1
    with StopSignals().watching() as stop:
        assert stop.received == 0


@pytest.mark.slow
def test_a_compiled_run_is_the_same_run(tmp_path):
    """torch.compile in a run, with a resume: names of weights unchanged, losses alike."""
    _, plain = run(tmp_path / "plain")

    def stop(model):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):  # after three of the six steps, the last of which is saved
        run(tmp_path / "compiled", compile=True, save_minutes=0, score=stop, score_epochs=1)
    name, compiled = run(tmp_path / "compiled", model=tiny(1), compile=True, resume="auto")
    assert losses(compiled) == pytest.approx(losses(plain), rel=1e-4) and len(losses(plain)) == 6
    state = load_run(tmp_path / "compiled" / "checkpoints" / name / "last.pt")
    assert state["model"].keys() == tiny().state_dict().keys()


def test_a_tracker_hears_of_every_step_and_epoch(tmp_path, monkeypatch):
    """Weights & Biases stands in here as a module that records; it is an extra, and nobody has to have it."""
    heard = []

    class Run:
        def log(self, values, step):
            heard.append((step, set(values)))

        def log_artifact(self, artifact):
            heard.append(artifact.files)

        def finish(self):
            heard.append("end")

    class Artifact:
        def __init__(self, name, type, metadata):
            self.files = [name.split("-")[0], type, metadata["step"]]

        def add_file(self, path):
            self.files.append(Path(path).name)

    def init(**settings):
        heard.append((settings["mode"], settings["config"]["model"]["mask_ratio"]))
        return Run()

    monkeypatch.delenv("WANDB_MODE", raising=False)
    fake = types.SimpleNamespace(init=init, Image=lambda path: path, Artifact=Artifact)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    run(tmp_path, tracker="wandb", num_epochs_per_save=2, figures=True)
    step = {"loss", "lr", "grad_norm", "pairs_per_second", "waiting", "memory_mib"}
    epoch = {"epoch", "epoch_loss"}
    steps = [(number, step) for number in range(1, 7)]
    assert heard == [
        ("offline", 0.75), *steps[:3], (3, epoch), *steps[3:], (6, epoch | {"losses", "reconstruction"}),
        ["checkpoint", "model", 6, "2.pt"], "end",
    ]  # fmt: skip
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match=r"siammae\[wandb\]"):
        run(tmp_path, tracker="wandb")


def test_tensorboard_reads_what_a_run_wrote(tmp_path):
    name, steps = run(tmp_path, tracker="tensorboard", num_epochs_per_save=2, figures=True)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "losses" / "tensorboard" / name))
    events.Reload()
    assert [scalar.value for scalar in events.Scalars("loss")] == pytest.approx(losses(steps))
    assert {"reconstruction", "losses"} <= set(events.Tags()["images"])
