"""Training: it learns, it repeats itself exactly, it goes on where it stopped, and its logs say what happened."""

import json
import math
import os
import sys
import types
from pathlib import Path

import pytest
import torch

from common.errors import InputError
from dataset_loader import get_kinetics_dataset, make_loader
from dataset_loader.synthetic import synthetic_video
from mae.models_mae import MAEEncoder
from ml import runs
from ml.checkpoints import find_checkpoint, load_model, load_run
from ml.logs import read_losses, read_steps
from ml.optimisation import lr_scale, make_optimizer, make_scheduler
from ml.presets import PRESETS, RunConfig, preset
from ml.SiamMAE import SiamMAE, build_model
from ml.utils import evaluate, train, train_one_epoch

GOLDEN = Path(__file__).parents[1] / "golden" / "ten_steps.txt"


def tiny(seed=0, **kw):
    torch.manual_seed(seed)
    encoder = MAEEncoder(img_size=48, patch_size=8, embed_dim=64, depth=3, num_heads=4)
    return SiamMAE(encoder, kw.pop("mask_ratio", 0.75), decoder_size=(64, 2, 4), **kw)


def loader(clips, workers=0, batch_size=4, **kw):
    dataset = get_kinetics_dataset(clips, **{"image_size": 48, "repeated_sampling": 2, **kw})
    return make_loader(dataset, batch_size, workers=workers)


def pairs(count=4, size=48):
    """Pairs [count, 2, 3, size, size] of the synthetic world, not through a decoder: the same on every machine."""
    scenes = [synthetic_video(seed, height=size, width=size, times=[0.0, 0.2]) for seed in range(count)]
    return torch.stack([torch.from_numpy(scene.frames) for scene in scenes])


def test_four_pairs_are_learnt_by_heart():
    """With fixed masks the loss falls below 30 % of its start within 300 steps."""
    model, video, seeds = tiny(mask_ratio=0.95), pairs(), torch.arange(4)
    optimizer = make_optimizer(model, 3e-3, weight_decay=0)
    scheduler = make_scheduler(optimizer, 20, 300)
    batch = {"video": video, "seed": seeds}
    losses = train_one_epoch([batch] * 300, optimizer, scheduler, "cpu", model)
    assert losses[-1] < 0.3 * losses[0]


def test_ten_steps_give_the_recorded_losses():
    """Renew after an intended change of the arithmetic: RENEW_GOLDEN=1 make test, and say so in the commit."""
    model = tiny(mask_ratio=0.75)
    optimizer = make_optimizer(model, 1e-3)
    video = pairs(8)
    batches = [{"video": video[k % 2 :: 2], "seed": torch.arange(4) + 10 * k} for k in range(10)]
    losses = train_one_epoch(batches, optimizer, make_scheduler(optimizer, 2, 10), "cpu", model)
    if os.environ.get("RENEW_GOLDEN"):
        GOLDEN.write_text("".join(f"{loss:.6f}\n" for loss in losses))
    expected = [float(line) for line in GOLDEN.read_text().splitlines()]
    assert losses == pytest.approx(expected, rel=1e-4), "see this test's docstring"


def test_one_seed_gives_one_log_with_and_without_workers(clips, tmp_path):
    texts = []
    for workers in (0, 0, 2):
        run = train(tiny(), loader(clips, workers), epochs=2, device="cpu", root=tmp_path, progress=False)
        texts.append((tmp_path / "losses" / f"{run}.txt").read_text())
    assert texts[0] == texts[1] == texts[2] and texts[0].count("\n") == 2


def test_resuming_is_as_if_it_had_never_stopped(clips, tmp_path):
    options = dict(epochs=4, device="cpu", root=tmp_path, progress=False, num_epochs_per_save=3)
    whole = train(tiny(), loader(clips), prefix="whole_", **options)

    class Stopped(Exception):
        pass

    class Stopping:
        """A loader that is pulled out in the middle of the third epoch."""

        def __init__(self, inner):
            self.inner, self.batch_size, self.epoch = inner, inner.batch_size, 0

        def __len__(self):
            return len(self.inner)

        def set_epoch(self, epoch):
            self.epoch = epoch
            self.inner.set_epoch(epoch)

        def __iter__(self):
            for k, batch in enumerate(self.inner):
                if self.epoch == 3 and k == 1:
                    raise Stopped
                yield batch

    with pytest.raises(Stopped):
        train(tiny(), Stopping(loader(clips)), prefix="cut_", **options)
    (cut,) = (p.name for p in (tmp_path / "checkpoints").glob("cut_*"))
    log = tmp_path / "losses" / f"{cut}.txt"
    assert len(read_losses(log)) == 2
    log.write_text(log.read_text() + "Epoch 3 - Avg Loss: 9.0 Losses - [9.0]\n")  # written, but its checkpoint was not
    assert train(tiny(seed=1), loader(clips), resume=cut, **options) == cut
    assert log.read_text() == (tmp_path / "losses" / f"{whole}.txt").read_text()
    ends = [load_run(tmp_path / "checkpoints" / run / "last.pt")["model"] for run in (whole, cut)]
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])
    with pytest.raises(InputError, match="base_lr was 0.00015 and is now 0.1"):
        train(tiny(), loader(clips), resume=cut, base_lr=0.1, **options)
    with pytest.raises(InputError, match=r"mask_ratio was 0\.75 and is now 0\.5"):
        train(tiny(mask_ratio=0.5), loader(clips), resume=cut, **options)


def test_what_a_run_leaves_behind(clips, tmp_path):
    config = {"note": "plain values"}
    run = train(
        tiny(), loader(clips), epochs=3, prefix="mask75_", num_epochs_per_save=2, device="cpu", root=tmp_path,
        config=config, progress=False,
    )  # fmt: skip
    assert run.startswith("mask75_20") and ":" not in run
    lines = (tmp_path / "losses" / f"{run}.txt").read_text().splitlines()
    assert [line.split(" - ")[0] for line in lines] == ["Epoch 1", "Epoch 2", "Epoch 3"]
    assert lines[0].startswith("Epoch 1 - Avg Loss: ") and " Losses - [" in lines[0]
    epochs = read_losses(tmp_path / "losses" / f"{run}.txt")
    assert [len(e.losses) for e in epochs] == [3] * 3  # 6 clips × 2 pairs in batches of 4
    assert epochs[1].mean == pytest.approx(sum(epochs[1].losses) / 3)
    files = {p.name for p in (tmp_path / "checkpoints" / run).iterdir()}
    assert files == {
        "2.pt",
        "3.pt",
        "last.pt",
        "previous.pt",
        "2.png",
        "3.png",
        "config.json",
    }  # the last epoch is saved too
    assert (tmp_path / "losses" / f"{run}.png").read_bytes().startswith(b"\x89PNG")
    saved = torch.load(tmp_path / "checkpoints" / run / "last.pt", weights_only=True)
    assert saved["epoch"] == 3 and saved["step"] == 9 and saved["run_config"] == config
    assert json.loads((tmp_path / "checkpoints" / run / "config.json").read_text())["model"]["mask_ratio"] == 0.75
    model, _ = load_model(find_checkpoint(f"{run}/2", tmp_path))
    assert not model.training and model.config == tiny().config


def test_two_runs_of_one_second_do_not_meet(tmp_path, monkeypatch):
    ticks = iter(range(100))

    class Clock:
        @staticmethod
        def now():
            return utils_datetime(2026, 1, 1, 0, 0, next(ticks) // 3)

    from datetime import datetime as utils_datetime

    monkeypatch.setattr(runs, "datetime", Clock)
    monkeypatch.setattr(runs.time, "sleep", lambda seconds: None)
    names = [runs.new_run("", tmp_path) for _ in range(3)]
    assert names == ["2026-01-01_00-00-00", "2026-01-01_00-00-01", "2026-01-01_00-00-02"]
    with pytest.raises(InputError, match="file name"):
        runs.new_run("a/b", tmp_path)


def test_a_loss_that_is_not_a_number_stops_the_run_and_keeps_what_was(clips, tmp_path):
    class Poisoned(SiamMAE):
        poisoned = False

        def forward(self, *args, **kw):
            loss, prediction, mask = super().forward(*args, **kw)
            return loss * math.nan if self.poisoned else loss, prediction, mask

    model = tiny()
    model.__class__ = Poisoned
    options = dict(epochs=2, device="cpu", root=tmp_path, progress=False)
    batches = loader(clips)
    set_epoch = batches.set_epoch
    batches.set_epoch = lambda epoch: (set_epoch(epoch), setattr(model, "poisoned", epoch == 2))
    with pytest.raises(InputError, match=r"loss is nan at step 1 of epoch 2.*family\d_\d\.mp4"):
        train(model, batches, **options)
    (run,) = (tmp_path / "checkpoints").iterdir()
    saved = load_run(run / "last.pt")
    assert saved["epoch"] == 1 and all(value.isfinite().all() for value in saved["model"].values())


def test_the_learning_rate_at_its_landmarks():
    assert lr_scale(0, 40, 400) == 0 and lr_scale(20, 40, 400) == 0.5 and lr_scale(40, 40, 400) == 1
    assert lr_scale(220, 40, 400) == pytest.approx(0.5) and lr_scale(400, 40, 400) == pytest.approx(0)
    assert lr_scale(0, 0, 10) == 1
    optimizer = make_optimizer(tiny(), 2.0)
    scheduler, seen = make_scheduler(optimizer, 2, 6), []
    for _ in range(6):  # PITFALLS 9: what an update uses, not what is set after it
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert seen == [2 * lr_scale(step, 2, 6) for step in range(6)] and seen[0] == 0


def test_decay_spares_vectors_only():
    model = tiny()
    decayed, spared = make_optimizer(model, 1.0, 0.05).param_groups
    names = {id(p): n for n, p in model.named_parameters()}
    assert (decayed["weight_decay"], spared["weight_decay"], decayed["betas"]) == (0.05, 0.0, (0.9, 0.95))
    assert {names[id(p)] for p in spared["params"]} == {
        n for n, p in model.named_parameters() if n.endswith("bias") or "norm" in n
    }
    assert {"encoder.cls_token", "decoder.mask_token"} <= {names[id(p)] for p in decayed["params"]}
    assert "encoder.pos_embed" not in names.values() or not model.encoder.pos_embed.requires_grad
    assert len(decayed["params"]) + len(spared["params"]) == sum(p.requires_grad for p in model.parameters())


def test_evaluation_repeats_and_weighs_a_ragged_batch(clips):
    dataset = get_kinetics_dataset(clips, image_size=48, augment=False)
    ragged = make_loader(dataset, 4, shuffle=False, drop_last=False)
    single = make_loader(dataset, 1, shuffle=False, drop_last=False)
    model = tiny()
    first = evaluate(model, ragged, "cpu")
    assert first == evaluate(model, ragged, "cpu") and len(first.losses) == 2  # 4 pairs and 2
    assert first.mean == pytest.approx(evaluate(model, single, "cpu").mean, rel=1e-5)
    assert first.mean != pytest.approx(sum(first.losses) / 2, rel=1e-6)
    assert all(p.grad is None for p in model.parameters())


def test_presets_hold_together():
    for name, each in PRESETS.items():
        config = preset(name).config
        assert each.about and config.batch_size % config.repeated_sampling == 0
        with torch.device("meta"):
            model = build_model(config.model, **config.model_arguments)
        assert model.mask_ratio == config.mask_ratio
        assert config.image_size % model.patch_size == 0
        if name.endswith("_smoke") or f"{name}_smoke" in PRESETS:
            for processes in (1, 2, 4):
                config.shares(processes)
    assert preset("paper_small_16").config.peak_lr == pytest.approx(1.5e-4 * 2048 / 256)
    assert preset("micro").config.peak_lr == pytest.approx(1e-3)
    nothing = float("nan")
    for wrong in (
        dict(mask_ratio=95), dict(epochs=0), dict(min_gap=9, max_gap=8), dict(batch_size=3), dict(weight_decay=-1),
        dict(clip_grad=nothing), dict(seed=2**70), dict(stride=2),
        dict(model="mae_st_micro_patch8", clip_frames=8, futures=2),
    ):  # fmt: skip
        with pytest.raises(InputError):
            RunConfig(**wrong)
    with pytest.raises(InputError, match="micro, demo"):
        preset("macro")


def test_a_tracker_hears_of_every_step_and_epoch(clips, tmp_path, monkeypatch):
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
    options = dict(epochs=2, num_epochs_per_save=2, device="cpu", root=tmp_path, progress=False)
    train(tiny(), loader(clips), tracker="wandb", **options)
    step = {"loss", "lr", "grad_norm", "pairs_per_second", "waiting", "memory_mib"}
    epoch = {"epoch", "epoch_loss"}
    steps = [(number, step) for number in range(1, 7)]
    assert heard == [
        ("offline", 0.75), *steps[:3], (3, epoch), *steps[3:], (6, epoch | {"losses", "reconstruction"}),
        ["checkpoint", "model", 6, "2.pt"], "end",
    ]  # fmt: skip
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match=r"siammae\[wandb\]"):
        train(tiny(), loader(clips), tracker="wandb", **options)


def test_tensorboard_reads_what_a_run_wrote(clips, tmp_path):
    run = train(
        tiny(), loader(clips), epochs=2, num_epochs_per_save=2, device="cpu", root=tmp_path, tracker="tensorboard",
        progress=False,
    )  # fmt: skip
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "losses" / "tensorboard" / run))
    events.Reload()
    told = [scalar.value for scalar in events.Scalars("loss")]
    assert told == pytest.approx(
        [
            step["loss"]
            for step in read_steps(tmp_path / "losses" / f"{run}.jsonl")[:3]
            + read_steps(tmp_path / "losses" / f"{run}.jsonl")[4:7]
        ]
    )
    assert {"reconstruction", "losses"} <= set(events.Tags()["images"])
