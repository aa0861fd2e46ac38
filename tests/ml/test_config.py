"""The configuration: flat names, checks where it is made, presets that hold together, names that are registered."""

from typing import get_args

import pytest
import torch

from common.errors import InputError
from mae.masking import MASKINGS
from mae.patches import LOSSES
from ml.config import DecoderKind, EncoderKind, LossKind, MaskKind, MaskStrategy, RunConfig, field_types
from ml.decoders import DECODERS
from ml.extensions.hiding import STRATEGIES
from ml.presets import PRESETS, preset
from ml.SiamMAE import ENCODERS, build_model


def test_names_on_the_command_line_are_those_of_the_registries():
    kinds = {DecoderKind: DECODERS, MaskKind: MASKINGS, LossKind: LOSSES, EncoderKind: ENCODERS}
    kinds[MaskStrategy] = STRATEGIES
    for literal, registry in kinds.items():
        assert get_args(literal) == tuple(registry)


def test_the_saved_form_is_flat_and_makes_the_same_again():
    config = RunConfig().replace(mask_ratio=0.5, epochs=50, workers=3, decoder_depth=6)
    flat = config.flat()
    assert RunConfig().replace(**flat) == config and flat["decoder_depth"] == 6
    assert flat.keys() == field_types().keys()
    assert len(flat) == sum(len(vars(part)) for part in vars(config).values()), "two sections share a name"
    with pytest.raises(InputError, match="mask is no field of RunConfig; there are model, mask_ratio"):
        config.replace(mask=0.5)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (dict(mask_ratio=95), "0.95 for 95 %"),
        (dict(epochs=0), "epochs is 0; expected at least 1"),
        (dict(min_gap=9, max_gap=8), "max_gap 8 is smaller than min_gap 9"),
        (dict(batch_size=3), "batch_size 3 does not divide by repeated_sampling"),
        (dict(weight_decay=-1), "weight_decay is -1"),
        (dict(clip_grad=float("nan")), "clip_grad is nan"),
        (dict(seed=2**70), "less than 2.63"),
        (dict(warmup_epochs=500), "expected 0 to epochs, which is 400"),
        (dict(stride=2), "stride is 2; it means nothing to siammae_small_patch16, a model of pairs"),
        (dict(model="mae_st_micro_patch8", clip_frames=8, futures=2), "futures is 2; it means nothing to mae_st_micro"),
    ],
)
def test_a_wrong_value_is_refused_where_it_is_made(wrong, said):
    with pytest.raises(InputError, match=said):
        RunConfig().replace(**wrong)


def test_a_model_of_clips_wants_clips_and_one_of_pairs_pairs():
    for wrong in (dict(model="mae_st_micro_patch8"), dict(clip_frames=8)):
        config = RunConfig().replace(**wrong)
        with pytest.raises(InputError, match="clip_frames"), torch.device("meta"):
            build_model(config.model.model, **config.model_arguments)


@pytest.mark.parametrize("name", ["siammae_micro_patch8", "mae_st_micro_patch8"])
def test_settings_of_the_decoder_the_loss_and_the_target_reach_the_model(name):
    clips = dict(clip_frames=8) if name.startswith("mae_st") else {}
    changes = dict(decoder_embed_dim=48, decoder_depth=1, loss="l1", norm_pix_loss="no")
    config = RunConfig().replace(model=name, image_size=64, **clips, **changes)
    with torch.device("meta"):
        model = build_model(name, **config.model_arguments)
    assert (model.loss, model.norm_pix_loss) == ("l1", False)
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    assert shapes["mask_token" if clips else "decoder.mask_token"][-1] == 48
    assert len({key.split("blocks.")[1][0] for key in shapes if "decoder" in key and "blocks." in key}) == 1


def test_a_step_is_divided_over_processes_and_batches():
    config = RunConfig().replace(batch_size=2048, pairs_per_device=256, repeated_sampling=2)
    assert config.shares(1) == (256, 8) and config.shares(4) == (256, 2) and config.shares(16) == (128, 1)
    assert config.replace(futures=2).shares(8) == (128, 1)  # samples: a past with two futures
    with pytest.raises(InputError, match="2048 pairs in a step do not divide over 3 processes"):
        config.shares(3)


def test_presets_hold_together():
    models = {}
    for name, each in PRESETS.items():
        config = preset(name).config
        assert each.about
        with torch.device("meta"):
            key = config.model.model, str(config.model_arguments)
            model = models[key] = models.get(key) or build_model(config.model.model, **config.model_arguments)
        assert model.mask_ratio == config.model.mask_ratio
        assert config.data.image_size % model.patch_size == 0
        if name.endswith("_smoke"):
            full = PRESETS[name.removesuffix("_smoke")].config
            for processes in (1, 2, 4):
                config.shares(processes), full.shares(processes)
            assert config.optimisation.epochs == 2 and config.shares(1)[1] == 2 and config.shares(2)[1] == 1
            kept = ("mask_ratio", "base_lr", "weight_decay", "repeated_sampling", "encoder_kind", "decoder_kind")
            assert [config.flat()[x] for x in kept] == [full.flat()[x] for x in kept]
    assert preset("micro").config.peak_lr == pytest.approx(1e-3)
    with pytest.raises(InputError, match="micro, demo"):
        preset("macro")


def test_the_papers_recipe():
    config = preset("paper_small_16").config
    expected = dict(
        base_lr=1.5e-4, batch_size=2048, weight_decay=0.05, warmup_epochs=40, repeated_sampling=2, epochs=400,
        mask_ratio=0.95, futures=1, min_gap=4, max_gap=48,
    )  # fmt: skip
    assert {name: config.flat()[name] for name in expected} == expected
    assert config.peak_lr == pytest.approx(1.2e-3)
    assert preset("paper_small_16_2000").config.optimisation.epochs == 2000
