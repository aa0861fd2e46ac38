"""What fits into a device's memory: a step without numbers needs what a real one needs, and `auto` fills the device."""

import pytest
import torch
import tyro

from cli.train import arguments
from common.errors import InputError
from ml import memory
from ml.ablation import read_grid
from ml.config import RunConfig
from ml.memory import CONTEXT, GAPS, Live, bytes_of_step, pairs_that_fit, rehearse, with_pairs_that_fit
from ml.presets import PRESETS
from ml.ranks import Ranks
from ml.SiamMAE import build_model

MICRO = RunConfig().replace(model="siammae_micro_patch8", image_size=64, batch_size=64, repeated_sampling=2)
CLIPS = dict(model="mae_st_micro_patch8", clip_frames=8)
CPU = torch.device("cpu")


@pytest.mark.parametrize("changes", [{}, CLIPS, dict(checkpointing=True)])
def test_a_rehearsal_needs_what_a_real_step_needs(changes):
    """Byte for byte, on the CPU, in float32."""
    config = MICRO.replace(**changes)
    model = build_model(config.model.model, **config.model_arguments)
    shape = (config.data.frames, 3, 64, 64)
    real, fake = Live(), Live()
    with real:
        video = torch.empty(4, shape[0], 64, 64, 3, dtype=torch.uint8).permute(0, 1, 4, 2, 3)
        loss = model(video, noise=model.draw_noise(video, torch.empty(4, dtype=torch.int64)))[0]
        loss.backward()
    with torch.device("meta"):
        model = build_model(config.model.model, **config.model_arguments)
    rehearse(model, 4, shape, fake, bfloat16=False)
    assert fake.peak == pytest.approx(real.peak, rel=0.01) and fake.peak > 5e6


def test_a_storage_counts_once_and_only_while_it_lives():
    with Live() as live:
        x = torch.empty(100)
        y = x[10:].view(9, 10)
        assert live.now == live.peak == 400
        z = y + 1
        del x
        assert live.now == 760
        del y, z
    assert live.now == 0 and live.peak == 760


@pytest.mark.slow
def test_bytes_are_proportional_to_the_batch():
    """Beside weights and the optimiser's state: so two rehearsals say what all others would."""
    config = MICRO.replace(decoder_depth=1)
    few, more, many = (bytes_of_step(config, samples, bfloat16=True) for samples in (64, 100, 128))
    assert (more - few) / 36 == (many - few) / 64
    assert bytes_of_step(config, 64, bfloat16=False) > 1.4 * few


@pytest.mark.parametrize(("futures", "expected"), [(1, 90), (3, 270)])
def test_as_many_as_fit_and_not_one_more(futures, expected, monkeypatch):
    monkeypatch.setattr(memory, "bytes_of_step", lambda config, samples, bfloat16: 1e9 + 1e8 * samples)
    config = MICRO.replace(futures=futures, batch_size=60)
    for usable, fit in ((10e9, expected), (10e9 - 1e6, expected - futures), (1e9, 0), (0, 0)):
        assert pairs_that_fit(config, int((usable + CONTEXT) / (1 - GAPS)) + 1) == fit


def test_the_command_line_takes_a_number_or_auto(monkeypatch):
    taken = []
    monkeypatch.setattr("cli.train.run", lambda given: taken.append(given.config.optimisation.pairs_per_device))
    for word in ("auto", "8"):
        argv = ["--data", "videos", "--pairs-per-device", word]
        tyro.cli(arguments(argv), args=argv)
    assert taken == ["auto", 8] and read_grid(["pairs_per_device=4,auto"]) == {"pairs_per_device": (4, "auto")}


@pytest.mark.parametrize(
    ("fits", "expected"), [([64], 64), ([63], 32), ([31], 16), ([1000], 64), ([40, 9], 8), ([2], 2)]
)
def test_auto_is_the_largest_part_of_a_share_that_fits_everywhere(fits, expected, monkeypatch):
    config = MICRO.replace(pairs_per_device="auto", batch_size=64 * len(fits))
    ranks = Ranks()
    ranks.world_size = len(fits)
    monkeypatch.setattr(ranks, "gather", lambda value: fits)
    monkeypatch.setattr(memory, "pairs_that_fit", lambda config, memory, bfloat16: fits[0])
    chosen = with_pairs_that_fit(config, CPU, ranks)
    assert chosen.optimisation.pairs_per_device == expected
    assert chosen.shares(len(fits)) == (expected, 64 // expected)
    assert config.shares(1) == (64 * len(fits), 1), "not worked out: the whole share"
    assert with_pairs_that_fit(MICRO, CPU, ranks) is MICRO


def test_where_nothing_fits_it_says_so(monkeypatch):
    monkeypatch.setattr(memory, "pairs_that_fit", lambda *_, **__: 3)
    config = RunConfig().replace(pairs_per_device="auto", repeated_sampling=4)
    with pytest.raises(InputError, match="3 pairs fit into the memory of cpu, and 4 come from one visit"):
        with_pairs_that_fit(config, CPU, Ranks())


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in PRESETS if name.startswith(("paper", "mae_base", "mae_large"))
                                  and not name.endswith("_smoke")])  # fmt: skip
def test_presets_fill_eighty_gigabytes(name):
    """They fit, and the next larger part of a step would not."""
    config = PRESETS[name].config
    fit, total = pairs_that_fit(config, 80_000_000_000), config.optimisation.batch_size
    taken = config.optimisation.pairs_at_once or total
    assert taken <= fit and (taken == total or 2 * taken > fit or total // taken == 8)
