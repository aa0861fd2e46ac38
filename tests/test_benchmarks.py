"""The benchmark of loading runs, in smoke size, and says what it should."""

import json

import numpy as np
import pytest

from benchmarks import loading, sampling
from dataset_loader import RandomTemporalSubsample

# pytorchvideo's own code stems from before these.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture(scope="module")
def forms(clips, tmp_path_factory):
    return loading.prepare_forms(sorted(clips.iterdir()), tmp_path_factory.mktemp("forms"), loading.SMOKE)


@pytest.fixture(scope="module")
def result(clips, tmp_path_factory):
    out = tmp_path_factory.mktemp("benchmark") / "loading.json"
    loading.main(["--smoke", "--data", str(clips), "--out", str(out)])
    return json.loads(out.read_text())


@pytest.mark.slow
def test_every_form_is_measured(result):
    names = [loading.THEIRS, loading.THEIRS_WHOLE, loading.SHORT, loading.SHORT_4]
    names += [loading.PLAIN, loading.PLAIN_2, loading.PLAIN_4]
    expected = {*names, loading.FLOOR, loading.FOLDERS, loading.PACKED, loading.LIMIT} - set(result["missing"])
    assert set(result["speeds"]) == expected
    for row in result["speeds"].values():
        assert 0 < row["low"] <= row["pairs_a_second"] <= row["high"]
        assert np.isclose(row["cores_for_wanted"] * row["pairs_a_second"], loading.WANTED)
        assert np.isclose(row["fed_by_host"], loading.HOST * row["pairs_a_second"])
    assert result["clips"] == 2
    for name in ("plain file", "short GOP", "packed"):
        assert 1 < result["worker_megabytes"][name] < loading.MOST_MEMORY
    text = loading.table(result)
    assert all(name in text for name in [*expected, *result["missing"], "R = 4 / plain file, R = 1", "tiny clips"])


@pytest.mark.slow
def test_pytorchvideo_beside_it(result):
    if loading.THEIRS in result["missing"]:
        pytest.skip(result["missing"][loading.THEIRS])
    (row,) = (row for row in result["ratios"] if (row["of"], row["to"]) == (loading.PLAIN, loading.THEIRS))
    assert row["at_least"] == 5 and row["ratio"] > 0


@pytest.mark.slow
def test_without_pytorchvideo_it_says_so(forms, result, monkeypatch):
    monkeypatch.setattr(loading, "import_pytorchvideo", _not_installed)
    rounds, missing = loading._ways(forms, loading.SMOKE)
    assert loading.THEIRS not in rounds and loading.PLAIN in rounds
    assert "not measured, it is not installed" in loading.table({**result, "missing": missing})


def _not_installed(name):
    raise loading.InputError("it is not installed")


def test_the_middle_of_seven():
    assert loading.middle([7, 1, 3, 2, 6, 5, 4]) == (4, 2, 6)
    assert loading.middle([1, 3]) == (2, 1, 3)


def test_all_forms_hold_the_same_clips(forms):
    """The same length, the same times, and about the same pictures."""
    opened = [loading.open_source(source).open(1) for source in (forms.plain, forms.short, forms.folders, forms.packed)]
    pictures = []
    for clip in opened:
        with clip:
            assert len(clip.times) == 60
            np.testing.assert_allclose(clip.times - clip.times[0], np.arange(60) / 30, atol=2e-4)
            pictures.append(clip.frames([0, 31])[0].astype(float))
    assert all(np.abs(picture - pictures[0]).mean() < 6 for picture in pictures)


def test_the_chi_square_test_is_even_and_notices_errors():
    """p of right draws is uniform; a wrong distribution, or a value that cannot occur, gives next to none."""
    times = np.arange(90) / 30
    table = RandomTemporalSubsample().probabilities(times)
    values = [sampling.compare("", sampling.draws(times, 100, seed=s)[:, 0], table.sum(1)).p for s in range(100)]
    counts = np.histogram(values, 4, (0, 1))[0]
    assert counts.min() > 10 and counts.max() < 45
    wrong = sampling.draws(times, 3000, max_gap=46)
    gaps, _, pairs = sampling.compare_pairs("", wrong, table)
    assert gaps.p < 1e-6 and pairs.degrees > 300
    assert sampling.compare("", np.array([0, 1, 2]), np.array([0.5, 0.5])).p == 0
    (right, *_) = sampling.compare_pairs("", sampling.draws(times, 3000), table)
    assert right.degrees == 44 and right.expected.sum() == pytest.approx(3000)


def test_rare_values_are_counted_with_their_neighbours():
    row = sampling.compare("", np.repeat([0, 1, 2, 3], [6, 1, 2, 1]), np.array([0.6, 0.1, 0.2, 0.1]))
    assert row.degrees == 0  # 6 expected, and then 4 more that join it
    row = sampling.compare("", np.repeat([0, 1, 2, 3], [12, 3, 3, 2]), np.array([0.6, 0.1, 0.2, 0.1]))
    assert row.degrees == 1 and row.statistic == pytest.approx(0)
