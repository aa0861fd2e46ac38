"""The figures and tables of notebooks/uncertainty.ipynb, in small; `make test-long` runs it from top to bottom."""

import pytest
import torch

from mae.models_mae import MAEEncoder
from ml.extensions.futures_figure import futures_figure
from ml.extensions.hiding_figure import hiding_figure
from ml.extensions.uncertainty import Member, VarianceHeads
from ml.extensions.uncertainty_figure import curves_figure, heat_figure, measures_table
from ml.reconstruction import reconstruct
from ml.SiamMAE import SiamMAE


@pytest.fixture
def pair():
    torch.manual_seed(0)
    model = SiamMAE(MAEEncoder((16, 24), 8, 16, 1, 2), 0.5, decoder_size=(16, 1, 2)).eval()
    draw = torch.Generator().manual_seed(1)
    video = torch.randint(256, (2, 3, 3, 16, 24), generator=draw).byte()
    samples = [dict(video=video[k, :2], seed=torch.tensor(k), path=f"v{k}") for k in range(2)]
    return model, video, samples


def test_heat_maps_cover_hidden_patches_alone(pair):
    model, _, samples = pair
    figure = heat_figure([Member(model, VarianceHeads(16, 192))], samples, draws=2)
    titles = [axis.get_title() for axis in figure.axes[: len(figure.axes) // 2]]
    assert titles[:4] == ["f1", "f2 as it is seen", "prediction", "error"] and "head,\npatch" in titles
    shown = figure.axes[3].images[0].get_array()
    assert shown.shape == (16, 24) and shown.mask.mean() == 0.5  # 3 of 6 patches were visible


def test_masks_are_drawn_of_every_strategy_that_has_its_scores(pair):
    model, _, samples = pair
    for heads, names in (
        (None, ["random", "motion", "still"]),
        (VarianceHeads(16, 192), ["random", "uncertain", "motion", "still"]),
    ):
        figure = hiding_figure(model, samples, heads)
        assert [axis.get_title() for axis in figure.axes[: 2 + len(names)]] == ["f1", "f2", *names]
        grey = (figure.axes[-1].images[0].get_array() == 128).all(-1).mean()
        assert grey == pytest.approx(0.5, abs=0.01)


def test_futures_stand_side_by_side_with_their_gaps(pair):
    model, video, _ = pair
    row = reconstruct({"video": video[0], "time": torch.tensor([1.0, 1.25, 2.6])}, model)
    titles = [axis.get_title() for axis in futures_figure([row], titles=["clip"]).axes]
    assert titles[:3] == ["f1", "+0.25 s", "+1.60 s"] and len(titles) == 9


def test_curves_and_table_name_what_knows_the_answer():
    row = {"AUSE": 0.1, "Spearman": 0.5, "knows the answer": False, "curve": [1.0] * 100, "oracle": [1.0] * 100}
    sized = {"covered": [[0.1] * 9] * 2, "coverage error recalibrated": 0.05, "factor": 2.0}
    found = {"one": {**row, **sized}, "|two|": {**row, "AUSE": 0.05, "knows the answer": True}}
    left, right = curves_figure(found).axes
    assert len(left.lines) == 3 and len(right.lines) == 3
    lines = measures_table(found).splitlines()
    assert lines[2].startswith(r"| \|two\| (knows the answer) | 0.050 |") and lines[3].startswith("| one | 0.100 |")
