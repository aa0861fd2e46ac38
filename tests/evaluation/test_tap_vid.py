"""TAP-Vid: official numbers to the digit, loops on a tiny case, its pickles in small.

The numbers were computed by the official code (numpy) from the arrays that `np.random.RandomState` gives everywhere.
"""

import pickle

import numpy as np
import pytest

from cli.synthetic_scenes import grid_tracks
from common.errors import InputError
from evaluation.benchmarks import tap_vid
from evaluation.benchmarks.tap_vid import TapVid
from evaluation.controls import Copy
from evaluation.run import evaluate, score_results
from tests.evaluation.worlds import EXACT, Random, close, quiet, source, world


def tap_case():
    r, N, T = Random(1), 7, 20
    points = r.rand(N, T, 2).astype(np.float32)
    occluded = r.rand(N, T) < 0.3
    occluded[:, 0] = False
    occluded[2, :5], occluded[5] = True, True
    return points * 256, occluded


TAP = {
    "first": (
        6, 0.8715596330275229, (0.0, 0.038461538461538464, 0.23076923076923078, 0.7307692307692307, 0.9871794871794872),
        (0.0, 0.014084507042253521, 0.13385826771653545, 0.5157894736842106, 0.8), 0.2927464496885999,
    ),
    "strided": (
        19, 0.8033240997229917,
        (0.011811023622047244, 0.05905511811023622, 0.3031496062992126, 0.7440944881889764, 0.9960629921259843),
        None, 0.27767665257071317,
    ),
}  # fmt: skip


@pytest.mark.parametrize("mode", TAP)
def test_tap_metrics_equal_the_official_code(mode):
    points, occluded = tap_case()
    tracks, frames = (tap_vid.queries_first if mode == "first" else tap_vid.queries_strided)(occluded)
    count, right, within, jaccard, average = TAP[mode]
    truth, hidden, r = points[tracks], occluded[tracks], Random(2)
    found = truth[None] + r.randn(1, *truth.shape) * 5
    found_hidden = np.where(r.rand(1, *hidden.shape) < 0.85, hidden, ~hidden)
    measured = tap_vid.tap_metrics(frames, hidden, truth, found_hidden[0], found[0], mode)
    assert len(tracks) == count and measured["OA"] == close(right, **EXACT)
    assert [measured[f"d_{d}"] for d in tap_vid.DISTANCES] == close(within, **EXACT)
    assert measured["d_avg"] == close(np.mean(within), **EXACT) and measured["AJ"] == close(average, **EXACT)
    assert jaccard is None or [measured[f"J_{d}"] for d in tap_vid.DISTANCES] == close(jaccard, **EXACT)


@pytest.mark.parametrize("mode", TAP)
def test_tap_metrics_equal_loops(mode):
    points, occluded = tap_case()
    tracks, frames = (tap_vid.queries_first if mode == "first" else tap_vid.queries_strided)(occluded)
    expected = [(t, n) for t in range(0, 20, 5) for n in range(7) if not occluded[n, t]]
    if mode == "first":
        expected = [(min(t for t in range(20) if not occluded[n, t]), n) for n in range(7) if not occluded[n].all()]
    assert [(int(t), int(n)) for t, n in zip(frames, tracks, strict=True)] == expected
    truth, hidden = points[tracks], occluded[tracks]
    found, found_hidden = truth + Random(3).randn(*truth.shape) * 4, Random(4).rand(*hidden.shape) < 0.3
    hits = wrong = near = total = 0
    for q, start in enumerate(frames):
        for t in range(20):
            if t > start if mode == "first" else t != start:
                close_by = np.hypot(*(found[q, t] - truth[q, t])) < 4
                total += not hidden[q, t]
                near += not hidden[q, t] and close_by
                hits += not hidden[q, t] and not found_hidden[q, t] and close_by
                wrong += not found_hidden[q, t] and (hidden[q, t] or not close_by)
    measured = tap_vid.tap_metrics(frames, hidden, truth, found_hidden, found, mode)
    assert measured["d_4"] == near / total and measured["J_4"] == hits / (total + wrong)


@pytest.fixture
def tap(tmp_path):
    scene = world(seed=2, frames=6)
    points, occluded = grid_tracks(scene)
    entry = {"video": scene.frames.transpose(0, 2, 3, 1).copy(), "points": points, "occluded": occluded}
    (tmp_path / "tap").mkdir()
    (tmp_path / "tap" / "davis.pkl").write_bytes(pickle.dumps({"clip": entry}))
    return tmp_path / "tap" / "davis.pkl", entry


@pytest.mark.parametrize("mode", ["first", "strided"])
def test_tap_vid_from_end_to_end(mode, tap, tmp_path, capsys):
    file, _ = tap
    benchmark = TapVid(file, mode)
    (video,) = benchmark.videos()
    rules = benchmark.protocol(size="256x256")
    out = dict(out=tmp_path / "o", export=tmp_path / "e", pictures=True)
    result = evaluate(benchmark, source(), rules, **out)
    assert "soft-argmax within 2 cells" in capsys.readouterr().out
    still = evaluate(benchmark, Copy(), rules, report=quiet)
    assert still.row["d_avg"] < result.row["d_avg"] < 1 and 0 < result.row["AJ"] < 1
    again = score_results(benchmark, tmp_path / "e", report=quiet).row
    assert again == {name: close(value, abs=1e-9) for name, value in result.row.items()}
    exact = np.stack([video.label(t) for t in range(6)], axis=1)
    perfect = np.concatenate([np.nan_to_num(exact), np.isnan(exact[..., :1])], axis=2)
    row = benchmark.row({"": benchmark.score(video, list(perfect.transpose(1, 0, 2)))})
    assert row["AJ"] == row["OA"] == row["d_1"] == 1
    short = evaluate(benchmark, source(), rules, frames=3, report=quiet)
    assert 0 <= short.row["d_avg"] <= 1


def test_a_point_is_followed_by_itself(tap):
    from evaluation.points import follow_points

    frames = list(tap[1]["video"])
    queries = np.array([[0, 0.3, 0.4], [2, 0.6, 0.7], [0, 0.8, 0.2]])
    together = np.stack(list(follow_points(frames, queries, source().encode, (96, 128))))
    for n in range(3):
        alone = np.stack(list(follow_points(frames, queries[n : n + 1], source().encode, (96, 128), batch=4)))
        np.testing.assert_allclose(alone[:, 0], together[:, n], atol=1e-6)
    np.testing.assert_allclose(together[2, 1], [0.7, 0.6, 0], atol=1e-6)  # in its own frame it is where it was asked


class Evil:
    def __reduce__(self):
        return (print, ("run by a pickle",))


def test_pickles_build_arrays_and_nothing_else(tap, tmp_path, capsys):
    file, entry = tap
    for protocol_number in (2, 4, 5):
        file.write_bytes(pickle.dumps([entry], protocol=protocol_number))
        assert [video.name for video in TapVid(file).videos()] == ["0000"]
    for content, said in (
        (pickle.dumps({"clip": Evil()}), r"it holds a builtins.print"),
        (file.read_bytes()[:-500], "is no pickle of TAP-Vid"),
        (pickle.dumps({"clip": {"video": entry["video"]}}), "clip is not TAP-Vid's: expected video"),
        (
            pickle.dumps({"clip": {**entry, "occluded": entry["occluded"][:, 1:]}}),
            "clip is not TAP-Vid's: expected video",
        ),
    ):
        file.write_bytes(content)
        with pytest.raises(InputError, match=said):
            next(TapVid(file).videos())
    assert "run by a pickle" not in capsys.readouterr().out
    with pytest.raises(InputError, match="is no pickle of TAP-Vid, nor a folder that holds one"):
        next(TapVid(tmp_path / "none").videos())
