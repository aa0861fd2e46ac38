"""What the engine does beyond a plain loop: accumulation, averages, clipping, bad numbers, bad disks, scores."""

import errno
import os
import shutil
import subprocess
import threading

import pytest
import torch

from common.errors import InputError
from dataset_loader import get_kinetics_dataset, make_loader
from mae.models_mae import MAEEncoder
from ml import checkpoints
from ml.checkpoints import check_whole, load_model, load_run, newest_whole, save_checkpoint, save_last
from ml.guards import Divergence, StopSignals
from ml.logs import read_losses, read_steps
from ml.optimisation import Averaged, clip_gradients, load_optimizer_state, make_optimizer, optimizer_state, update
from ml.presets import PRESETS, RunConfig
from ml.SiamMAE import SiamMAE
from ml.training import train


def tiny(seed=0, **kw):
    torch.manual_seed(seed)
    return SiamMAE(
        MAEEncoder(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2), decoder_size=(32, 1, 2), **kw
    )


def loader(clips, batch_size=4, **kw):
    dataset = get_kinetics_dataset(clips, **{"image_size": 32, "repeated_sampling": 2, **kw})
    return make_loader(dataset, batch_size)


def run(clips, root, model=None, batches=None, **options):
    options = dict(epochs=2, device="cpu", root=root, progress=False, base_lr=1e-2, num_epochs_per_save=10, **options)
    name = train(model or tiny(), batches or loader(clips), **options)
    return name, read_steps(root / "losses" / f"{name}.jsonl")


def losses(steps):
    return [step["loss"] for step in steps if "loss" in step]


@pytest.fixture(autouse=True)
def _no_figures(monkeypatch):
    """Drawing takes longer than everything else here, and other tests look at it."""
    monkeypatch.setattr("ml.engine.Run._draw", lambda self: {})


class TestStep:
    def test_two_half_batches_are_one_batch(self, clips, tmp_path):
        model, other = tiny(), tiny()
        _, whole = run(clips, tmp_path / "whole", model, loader(clips, 4))
        _, halves = run(clips, tmp_path / "halves", other, loader(clips, 2), accumulation=2)
        assert losses(halves) == pytest.approx(losses(whole), rel=1e-5) and len(losses(whole)) == 6
        norms = [[step["grad_norm"] for step in steps if "loss" in step] for steps in (whole, halves)]
        assert norms[0] == pytest.approx(norms[1], rel=1e-4)
        with pytest.raises(InputError, match="has 6 batches, and a step takes 7"):
            run(clips, tmp_path, batches=loader(clips, 2), accumulation=7)

    def test_the_rate_is_a_function_of_the_step(self, clips, tmp_path):
        _, steps = run(clips, tmp_path, warmup_epochs=1)
        peak = 1e-2 * 4 / 256
        rates = [step["lr"] for step in steps if "loss" in step]
        assert rates == pytest.approx([0, peak / 3, 2 * peak / 3, peak, 0.75 * peak, 0.25 * peak])

    def test_clipping_shortens_long_gradients_and_tells_their_length(self):
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 3)
        model(torch.randn(4, 3)).square().sum().backward()
        before = torch.cat([p.grad.flatten() for p in model.parameters()])
        assert clip_gradients(model, 0).item() == pytest.approx(before.norm().item(), rel=1e-6)
        assert clip_gradients(model, 0.5).item() == pytest.approx(before.norm().item(), rel=1e-6)
        after = torch.cat([p.grad.flatten() for p in model.parameters()])
        torch.testing.assert_close(after, before * 0.5 / before.norm(), rtol=1e-4, atol=0)

    def test_layers_learn_the_slower_the_deeper_they_lie(self):
        model = tiny()
        names = {id(p): name for name, p in model.named_parameters()}
        factor = {
            names[id(p)]: group["lr"]
            for group in make_optimizer(model, 1.0, layer_decay=0.5).param_groups
            for p in group["params"]
        }
        assert factor["encoder.patch_embed.proj.weight"] == factor["encoder.cls_token"] == 0.5**3
        assert factor["encoder.blocks.0.attn.qkv.bias"] == 0.5**2 and factor["encoder.blocks.1.attn.qkv.bias"] == 0.5
        assert {factor[name] for name in factor if name.startswith("decoder.")} == {1.0}
        assert factor.keys() == {name for name, p in model.named_parameters() if p.requires_grad}

    def test_a_step_without_a_number_changes_nothing(self):
        model = torch.nn.Linear(2, 2)
        optimizer = make_optimizer(model, 0.1)
        model(torch.ones(1, 2)).sum().backward()
        update(optimizer, torch.tensor(1.0))
        before = [p.detach().clone() for p in model.parameters()]
        state = {k: v["step"].clone() for k, v in optimizer_state(model, optimizer).items()}
        model(torch.full((1, 2), torch.nan)).sum().backward()
        update(optimizer, torch.tensor(torch.nan))
        assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
        assert {k: v["step"] for k, v in optimizer_state(model, optimizer).items()} == state

    def test_the_optimisers_state_goes_by_name(self):
        model = tiny()
        optimizer = make_optimizer(model, 1e-3)
        model(torch.randint(256, (2, 2, 3, 32, 32), dtype=torch.uint8))[0].backward()
        optimizer.step()
        other = tiny(1)
        decayed = make_optimizer(other, 1e-3, layer_decay=0.7)  # other groups, other order
        load_optimizer_state(other, decayed, optimizer_state(model, optimizer))
        for (name, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
            if p.requires_grad:
                assert torch.equal(optimizer.state[p]["exp_avg"], decayed.state[q]["exp_avg"]), name
        with pytest.raises(InputError, match="another model"):
            load_optimizer_state(other, decayed, {"x": {}})


class TestAverages:
    def test_they_follow_the_weights_slowly(self):
        model = torch.nn.Linear(1, 1, bias=False)
        model.weight.data.fill_(0.0)
        averaged = Averaged(model, 0.75)
        for _ in range(2):
            model.weight.data.fill_(1.0)
            averaged.update()
        assert averaged.state()["weight"].item() == pytest.approx(1 - 0.75**2)
        with averaged.in_place():
            assert model.weight.item() == pytest.approx(1 - 0.75**2)
        assert model.weight.item() == 1.0

    def test_they_can_be_loaded_as_the_model(self, clips, tmp_path):
        name, _ = run(clips, tmp_path, ema=0.5)
        path = tmp_path / "checkpoints" / name / "last.pt"
        plain, saved = load_model(path)
        averaged, _ = load_model(path, averaged=True)
        key = "decoder.pred.weight"
        assert torch.equal(averaged.state_dict()[key], saved["averaged"][key])
        assert not torch.equal(averaged.state_dict()[key], plain.state_dict()[key])
        other, _ = run(clips, tmp_path)
        with pytest.raises(InputError, match="trained without ema"):
            load_model(tmp_path / "checkpoints" / other / "last.pt", averaged=True)


class TestBadNumbers:
    @staticmethod
    def poisoned(at, what):
        """A model whose loss, or gradient, is no number at some of its steps."""
        model = tiny()
        forward, count = model.forward, iter(range(1, 1000))

        def poison(*args, **kw):
            loss, prediction, mask = forward(*args, **kw)
            if next(count) in at:
                loss = loss * torch.nan if what == "loss" else loss * (loss / loss.detach()) ** torch.inf
            return loss, prediction, mask

        model.forward = poison
        return model

    @pytest.mark.parametrize("what", ["loss", "gradient"])
    def test_they_end_the_run_in_words(self, what, clips, tmp_path):
        with pytest.raises(
            InputError, match=rf"{what}.* at step 2 of epoch 2 \(learning rate .*family\d_\d.mp4.*clip_grad"
        ):
            run(clips, tmp_path, self.poisoned({5}, what))
        (folder,) = (tmp_path / "checkpoints").iterdir()
        _, state = newest_whole(folder)
        assert state["step"] == 3 and all(value.isfinite().all() for value in state["model"].values())

    def test_a_few_can_be_left_out(self, clips, tmp_path, capsys):
        name, steps = run(clips, tmp_path, self.poisoned({2, 5}, "loss"), skip_nonfinite=2)
        assert [step["step"] for step in steps if step.get("skipped")] == [2, 5]
        assert steps[1]["loss"] == "nan"
        assert [len(line.losses) for line in read_losses(tmp_path / "losses" / f"{name}.txt")] == [2, 2]
        state = load_run(tmp_path / "checkpoints" / name / "last.pt")
        assert state["skipped"] == 2 and all(value.isfinite().all() for value in state["model"].values())
        assert "left out, 1 of 2" in capsys.readouterr().err
        with pytest.raises(InputError, match="loss is nan at step 2 of epoch 2"):
            run(clips, tmp_path / "b", self.poisoned({2, 5}, "loss"), skip_nonfinite=1)

    def test_a_loss_that_runs_away_is_said(self, capsys):
        watch = Divergence()
        for step in range(400):
            watch.look(step, 0.5 + 0.1 * (step % 3))
        assert capsys.readouterr().err == ""
        for step in range(400, 460):
            watch.look(step, 1.9)
        assert capsys.readouterr().err.count("seems to diverge") == 1


class TestDisk:
    def test_a_full_disk_is_said_and_nothing_is_lost(self, clips, tmp_path, monkeypatch):
        """The file behind torch.save raises what a full disk raises, in the second checkpoint."""
        save, count = torch.save, iter(range(100))

        def full(state, file):
            if next(count) < 1:
                return save(state, file)
            write = file.write

            class Full:
                written = 0

                def write(self, data):
                    self.written += len(data)
                    if self.written > 20_000:
                        raise OSError(errno.ENOSPC, "No space left on device")
                    return write(data)

            return save(state, Full())

        monkeypatch.setattr(checkpoints.torch, "save", full)
        with pytest.raises(InputError, match="could not be written .the disk is full.; the earlier ones are intact"):
            run(clips, tmp_path)
        (folder,) = (tmp_path / "checkpoints").iterdir()
        monkeypatch.undo()
        assert newest_whole(folder)[1]["epoch"] == 1
        assert {path.name for path in folder.iterdir()} == {"config.json", "last.pt"}

    def test_a_really_full_disk(self, clips, tmp_path):
        """The same on a file system of two megabytes, where one may be mounted."""
        where = tmp_path / "small"
        where.mkdir()
        if subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=900k", "tmpfs", str(where)], capture_output=True
        ).returncode:
            pytest.skip("a small file system cannot be mounted here")
        try:
            with pytest.raises(InputError, match="the disk is full"):
                run(clips, where, save_minutes=0)
            (folder,) = (where / "checkpoints").iterdir()
            found = newest_whole(folder)
            assert found is not None and found[1]["step"] >= 1
        finally:
            subprocess.run(["umount", str(where)], check=True)

    def test_a_folder_that_vanishes_is_said(self, clips, tmp_path):
        def vanish(model):
            shutil.rmtree(tmp_path / "checkpoints")
            return {}

        with pytest.raises(InputError, match="has vanished"):
            run(clips, tmp_path, score=vanish, score_epochs=1)

    def test_a_folder_that_may_not_be_written_is_said(self, clips, tmp_path, monkeypatch):
        (tmp_path / "checkpoints").mkdir()
        replace = os.replace

        def refuse(a, b):
            if str(b).endswith("last.pt"):
                raise PermissionError(errno.EACCES, "Permission denied", str(b))
            return replace(a, b)

        monkeypatch.setattr(os, "replace", refuse)
        with pytest.raises(InputError, match="could not be written .Permission denied"):
            run(clips, tmp_path)

    def test_any_flipped_byte_is_noticed_or_harmless(self, tmp_path):
        model = tiny()
        path = tmp_path / "1.pt"
        save_checkpoint(path, dict(model=model.state_dict(), config=model.config, epoch=1))
        good, content = load_run(path)["model"], path.read_bytes()
        noticed = 0
        for place in range(0, len(content), 997):
            path.write_bytes(content[:place] + bytes([content[place] ^ 0x40]) + content[place + 1 :])
            try:
                state = load_run(path)["model"]
            except InputError:
                noticed += 1
            else:
                assert all(torch.equal(state[name], good[name]) for name in good), place
        assert noticed > 0.8 * len(range(0, len(content), 997))
        path.write_bytes(content[: len(content) // 2])
        with pytest.raises(InputError, match="damaged"):
            check_whole(path)

    def test_the_state_before_the_last_is_kept(self, tmp_path):
        model = tiny()
        for step in (1, 2, 3):
            save_last(tmp_path, dict(model=model.state_dict(), config=model.config, epoch=0, step=step))
        assert [load_run(tmp_path / name)["step"] for name in ("last.pt", "previous.pt")] == [3, 2]
        (tmp_path / "last.pt").write_bytes(b"")
        save_checkpoint(tmp_path / "7.pt", dict(model=model.state_dict(), config=model.config, epoch=7, step=9))
        said = []
        assert newest_whole(tmp_path, said.append)[0].name == "7.pt"  # newer than previous.pt
        assert "last.pt is empty" in said[0] and "7.pt instead, after 9 steps" in said[1]


class TestOnceInAWhile:
    def test_the_best_epoch_on_held_out_pairs_is_kept(self, clips, tmp_path):
        held_out = get_kinetics_dataset(clips, image_size=32, augment=False)
        validation = make_loader(held_out, 4, shuffle=False, drop_last=False)
        name, steps = run(clips, tmp_path, validation=validation, ema=0.5)
        told = [step["validation_loss"] for step in steps if "validation_loss" in step]
        lines = read_losses(tmp_path / "test_losses" / f"{name}.txt")
        assert [line.epoch for line in lines] == [1, 2] and [line.mean for line in lines] == told
        best = load_run(tmp_path / "checkpoints" / name / "best.pt")
        assert best["epoch"] == 1 + told.index(min(told)) and best["best"] == min(told)

    def test_a_function_that_is_handed_in_scores_the_model(self, clips, tmp_path):
        seen = []

        def score(model):
            seen.append((model.training, model.encode(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)).shape))
            return {"J&F": len(seen)}

        _, steps = run(clips, tmp_path, score=score, score_epochs=1)
        assert [step["J&F"] for step in steps if "J&F" in step] == [1.0, 2.0]
        assert seen == [(False, (1, 4, 4, 32))] * 2


class TestElsewhere:
    def test_it_runs_in_a_thread(self, clips, tmp_path):
        """Where signals cannot be listened to, it trains without."""
        done = []
        thread = threading.Thread(target=lambda: done.append(run(clips, tmp_path)))
        thread.start()
        thread.join()
        assert len(done) == 1
        with StopSignals().watching() as stop:
            assert stop.received == 0

    def test_any_loader_is_gone_on_with_in_the_middle_of_an_epoch(self, tmp_path):
        """One of torch's own, shuffled by its generator, which cannot skip."""
        data = [dict(video=torch.full((2, 3, 32, 32), k, dtype=torch.uint8), path=str(k)) for k in range(12)]
        batches = lambda: torch.utils.data.DataLoader(data, 2, shuffle=True)  # noqa: E731
        options = dict(epochs=2, device="cpu", progress=False, save_minutes=0)
        torch.manual_seed(5)
        model = tiny()
        torch.manual_seed(5)
        whole = train(model, batches(), root=tmp_path / "whole", **options)

        class Stop(Exception):
            pass

        class Ending(torch.utils.data.DataLoader):
            def __iter__(self):
                for k, batch in enumerate(super().__iter__()):
                    if k == 4:
                        raise Stop
                    yield batch

        model = tiny()
        torch.manual_seed(5)
        with pytest.raises(Stop):
            train(model, Ending(data, 2, shuffle=True), root=tmp_path / "cut", **options)
        torch.manual_seed(99)
        cut = train(tiny(1), batches(), root=tmp_path / "cut", resume="auto", **options)
        ends = [
            load_run(tmp_path / kind / "checkpoints" / name / "last.pt")["model"]
            for kind, name in (("whole", whole), ("cut", cut))
        ]
        assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])


@pytest.mark.slow
def test_a_compiled_run_is_the_same_run(clips, tmp_path):
    """torch.compile through the engine, with a resume: names of weights unchanged, losses alike."""
    _, plain = run(clips, tmp_path / "plain")

    def stop(model):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):  # after three of the six steps, the last of which is saved
        run(clips, tmp_path / "compiled", compile=True, save_minutes=0, score=stop, score_epochs=1)
    name, compiled = run(clips, tmp_path / "compiled", tiny(1), compile=True, resume="auto")
    assert losses(compiled) == pytest.approx(losses(plain), rel=1e-4) and len(losses(plain)) == 6
    state = load_run(tmp_path / "compiled" / "checkpoints" / name / "last.pt")
    assert state["model"].keys() == tiny().state_dict().keys()


class TestConfiguration:
    def test_a_step_is_divided_over_processes_and_batches(self):
        config = RunConfig(batch_size=2048, pairs_per_device=256, repeated_sampling=2)
        assert config.shares(1) == (256, 8) and config.shares(4) == (256, 2) and config.shares(16) == (128, 1)
        assert config.replace(futures=2).shares(8) == (128, 1)  # samples: a past with two futures
        with pytest.raises(InputError, match="2048 pairs in a step do not divide over 3 processes"):
            config.shares(3)

    def test_every_full_preset_has_its_smoke_twin(self):
        paper = PRESETS["paper_small_16"].config
        assert (paper.base_lr, paper.batch_size, paper.weight_decay, paper.warmup_epochs) == (1.5e-4, 2048, 0.05, 40)
        assert (paper.repeated_sampling, paper.epochs, paper.mask_ratio, paper.futures) == (2, 400, 0.95, 1)
        assert (paper.min_gap, paper.max_gap, paper.peak_lr) == (4, 48, pytest.approx(1.2e-3))
        assert PRESETS["paper_small_16_2000"].config.epochs == 2000
        for name in (
            "paper_small_16",
            "paper_small_8",
            "mae_base_50",
            "mae_base_75",
            "mae_base_95",
            "mae_large_75",
            "mae_st_large",
        ):
            full, twin = PRESETS[name].config, PRESETS[f"{name}_smoke"].config
            for field in ("mask_ratio", "base_lr", "weight_decay", "repeated_sampling", "encoder_kind", "decoder_kind"):
                assert getattr(full, field) == getattr(twin, field)
            assert twin.epochs == 2 and twin.shares(1)[1] == 2 and twin.shares(2)[1] == 1
