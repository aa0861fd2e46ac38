"""A schedule in a run: pairings by the epoch, mask ratios by the step, and a resume that continues exactly."""

import pytest
import torch

from common.errors import InputError
from dataset_loader import get_kinetics_dataset, make_loader
from ml.config import RunConfig
from ml.SiamMAE import build_model
from ml.utils import train

SCHEDULE = "0 shifted_patches 0.5; 2 mixed:video=1,shifted=1 0.5; 4 video 0.75"


def a_run(clips, root, **options) -> tuple[str, list[float]]:
    """The run's name, and for each step the share that was hidden."""
    torch.manual_seed(0)
    mae = dict(img_size=32, patch_size=4, embed_dim=16, depth=1, num_heads=2)
    model = build_model(dict(model="SiamMAE", mae=mae, mask_ratio=0.9, decoder_size=[16, 1, 2]))
    dataset = get_kinetics_dataset(clips, image_size=32, patch_size=4, schedule=SCHEDULE, visits=2)
    loader = make_loader(dataset, 4)
    hidden: list[float] = []
    model.register_forward_hook(lambda module, arguments, outputs: hidden.append(outputs[2].mean().item()))
    settings = dict(epochs=5, num_epochs_per_save=1, base_lr=0.05, root=root, progress=False, figures=False)
    name = train(model, loader, schedule=SCHEDULE, **settings, **options)
    assert model.mask_ratio == 0.9
    return name, hidden


def test_ratios_by_the_step_and_an_exact_resume(clips, tmp_path):
    name, hidden = a_run(clips, tmp_path)
    expected = [0.5] * 6 + [0.5 + 0.25 * step / 6 for step in range(6)] + [0.75] * 3  # 3 steps an epoch
    assert len(hidden) == 15
    assert hidden == pytest.approx(expected, abs=1 / 64)
    assert len({round(share, 3) for share in hidden[6:12]}) == 6
    folder = tmp_path / "checkpoints" / name
    whole = torch.load(folder / "5.pt", weights_only=True)["model"]
    for epoch in (3, 1):
        again, rest = a_run(clips, tmp_path, resume=f"{name}/{epoch}")
        assert again == name
        assert rest == hidden[3 * epoch :]
        repeated = torch.load(folder / "5.pt", weights_only=True)["model"]
        assert all(torch.equal(whole[key], value) for key, value in repeated.items())


def test_another_schedule_is_another_run(clips, tmp_path):
    name, _ = a_run(clips, tmp_path)
    with pytest.raises(InputError, match="schedule was"):
        train(
            build_model("siammae_micro_patch8"), make_loader(get_kinetics_dataset(clips, image_size=64), 4),
            epochs=5, schedule="0 video 0.6", resume=f"{name}/3", root=tmp_path, progress=False,
        )  # fmt: skip


def test_the_configuration_carries_it():
    config = RunConfig().replace(pairing="shifted", schedule=SCHEDULE, model="siammae_micro_patch8", image_size=64)
    assert config.dataset_arguments["pairing"] == "shifted"
    assert config.dataset_arguments["schedule"] == config.train_arguments["schedule"] == SCHEDULE
    assert config.dataset_arguments["patch_size"] == 8
    with pytest.raises(InputError, match="schedule '1 video'"):
        RunConfig().replace(schedule="1 video")
    with pytest.raises(InputError, match="pairing is shifted; it means nothing"):
        RunConfig().replace(model="mae_st_micro_patch8", clip_frames=8, pairing="shifted")
