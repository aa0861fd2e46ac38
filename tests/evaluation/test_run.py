"""Evaluation as a function: the numbers are the scorers', whatever interrupted it and however many shared it."""

import csv
import json
import math
import os
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from cli.main import main
from common.errors import InputError
from evaluation import ranks
from evaluation.benchmarks.camvid import CamVid
from evaluation.benchmarks.davis import Davis
from evaluation.benchmarks.folder import Folder
from evaluation.benchmarks.jhmdb import JHMDB
from evaluation.benchmarks.joints import Joints
from evaluation.controls import Copy, Oracle, follow, tracker, true_labels
from evaluation.features import Source, model_source, pixel_features
from evaluation.metrics import confusion, joint_errors, mean_iou
from evaluation.propagation import Context, propagate, propagate_step
from evaluation.protocols import protocol
from evaluation.run import evaluate, propagation_score, records
from mae.models_mae import MaskedAutoencoderViT

ROOT = Path(__file__).parents[2]
RULES = protocol("dino", size="32x48", top_k=2, context=2)


def source(name="pixels of 4", weights=None, on_encode=lambda images: None):
    def encode(images):
        on_encode(images)
        return pixel_features(images, 4)

    return Source(name, encode, 4, weights)


def quiet(line):
    """Nobody reads these lines."""


def test_the_numbers_are_the_scorers(small_davis, tmp_path, capsys):
    davis = Davis(small_davis)
    result = evaluate(davis, source(), RULES, tmp_path / "out")
    scores = {v.name: davis.score(v, list(follow(v, source(), RULES))) for v in davis.videos()}
    assert result.row == davis.row(scores) and len([one for each in scores.values() for one in each["objects"]]) == 4
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"pixels of 4; {RULES}" and lines[1].split() == ["video", "objects", "J", "F", "seconds"]
    assert [line.split()[0] for line in lines[2:5]] == ["two", "ant", "cow"]
    for name, line in zip(("two", "ant", "cow"), lines[2:5], strict=True):
        own = davis.row({name: scores[name]})
        assert line.split()[2:4] == [f"{100 * own['J-Mean']:.1f}", f"{100 * own['F-Mean']:.1f}"]
    assert lines[5].split() == ["J&F-Mean", "J-Mean", "J-Recall", "J-Decay", "F-Mean", "F-Recall", "F-Decay"]
    assert lines[6].split() == [f"{100 * value:.1f}" for value in result.row.values()] and lines[7] == lines[0]


def test_the_result_files(small_davis, tmp_path):
    result = evaluate(Davis(small_davis), source(weights="sha256 12"), RULES, tmp_path / "out", frames=5, report=quiet)
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    assert content["row"] == result.row and content["frames"] == 5 and content["videos"] == result.records
    assert content["source"] == {"name": "pixels of 4", "weights": "sha256 12"}
    assert content["protocol"] == {"name": RULES.name, **{f: getattr(RULES, f) for f in list(content["protocol"])[1:]}}
    assert set(content["protocol"]) == set(RULES.__dataclass_fields__) and str(RULES) in content["in_words"]
    assert content["seconds"] == sum(r["seconds"] for r in result.records) > 0
    assert content["peak_memory"]["process"] > 2**24 and content["versions"]["torch"] == version("torch")
    if (ROOT / ".git").exists():
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
        assert content["commit"].partition(",")[0] == head
    assert [r["frames"] for r in result.records] == [4, 5, 5]
    with open(tmp_path / "out" / "global_results.csv") as file:
        head, values = csv.reader(file)
    assert head == ["J&F-Mean", "J-Mean", "J-Recall", "J-Decay", "F-Mean", "F-Recall", "F-Decay"]
    assert values == [f"{result.row[name]:.3f}" for name in head]
    with open(tmp_path / "out" / "per-sequence_results.csv") as file:
        head, *rows = csv.reader(file)
    assert head == ["Sequence", "J-Mean", "F-Mean"] and [r[0] for r in rows] == ["two_1", "two_2", "ant_1", "cow_1"]
    second = result.records[0]["scores"]["objects"][1]
    assert rows[1][1:] == [f"{second['J-Mean']:.3f}", f"{second['F-Mean']:.3f}"]


def test_an_interrupted_run_goes_on_with_the_next_video(small_davis, tmp_path):
    seen = []

    def stop_in_the_second(images):
        seen.append(len(images))
        if len(seen) == 7:  # `two` has 4 frames
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(Davis(small_davis), source(on_encode=stop_in_the_second), RULES, tmp_path / "out", report=quiet)
    out = tmp_path / "out"
    assert [p.name for p in (out / "videos").iterdir()] == ["two.json"] and not (out / "results.json").exists()
    first = (out / "videos" / "two.json").read_bytes()
    seen.clear()
    result = evaluate(Davis(small_davis), source(on_encode=lambda i: seen.append(1)), RULES, out, report=quiet)
    assert len(seen) == 6 + 5 and (out / "videos" / "two.json").read_bytes() == first
    whole = evaluate(Davis(small_davis), source(), RULES, tmp_path / "whole", report=quiet)
    assert result.row == whole.row
    assert [r["scores"] for r in result.records] == [r["scores"] for r in whole.records]
    seen.clear()
    assert evaluate(Davis(small_davis), source(on_encode=lambda i: seen.append(1)), RULES, out, report=quiet).row
    assert seen == []


def test_a_folder_holds_one_run(small_davis, tmp_path, make):
    out = tmp_path / "out"
    evaluate(Davis(small_davis), source(weights="a"), RULES, out, report=quiet)
    before = {path: path.read_bytes() for path in out.rglob("*.json")}
    for changed, message in (
        (dict(protocol=RULES.with_(top_k=3)), "protocol top_k was 2 and is now 3.*; name another folder"),
        (dict(source=source(weights="b")), "source weights was 'a' and is now 'b'"),
        (dict(frames=3), "frames was None and is now 3"),
        (dict(benchmark=Davis(small_davis, 2016)), "benchmark year was 2017 and is now 2016"),
        (dict(settings={"half": True}), "settings half was None and is now True"),
    ):
        arguments = dict(benchmark=Davis(small_davis), source=source(weights="a"), protocol=RULES) | changed
        with pytest.raises(InputError, match=message):
            evaluate(out=out, report=quiet, **arguments)
    make.save(small_davis / "Annotations" / "480p" / "ant" / "00000.png", make.boxes((1, 0, 0)))
    with pytest.raises(InputError, match=r"ant.json is about another video 'ant' than the one given"):
        evaluate(Davis(small_davis), source(weights="a"), RULES, out, report=quiet)
    assert {path: path.read_bytes() for path in out.rglob("*.json")} == before
    (out / "videos" / "ant.json").write_text("[")
    with pytest.raises(InputError, match=r"ant.json cannot be read as a result"):
        evaluate(Davis(small_davis), source(weights="a"), RULES, out, report=quiet)


@pytest.mark.parametrize("place", ["out", "export"])
def test_a_folder_with_somebody_s_files_is_refused(place, small_davis, tmp_path):
    mine = tmp_path / "mine" / "two" / "00000.png"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    folders = {"out": tmp_path / "out", place: tmp_path / "mine"}
    with pytest.raises(InputError, match="mine holds files that are not of this run, and is not overwritten; name"):
        evaluate(Davis(small_davis), source(), RULES, report=quiet, **folders)
    assert [path for path in tmp_path.rglob("*") if path.is_file() and small_davis not in path.parents] == [mine]
    mine.rename(tmp_path / "mine" / ".letter")
    mine.parent.rmdir()
    evaluate(Davis(small_davis), source(), RULES, report=quiet, **folders)  # dot-files are in nobody's way
    assert (tmp_path / "mine" / ".letter").read_text() == "mine"


def test_a_folder_of_exports_holds_one_run(small_davis, tmp_path, make):
    seen, masks = [], tmp_path / "masks"
    options = dict(protocol=RULES, export=masks, report=quiet)
    counting = source(on_encode=lambda images: seen.append(1))
    evaluate(Davis(small_davis), counting, out=tmp_path / "one", **options)
    before = {path: path.read_bytes() for path in masks.rglob("*.png")}
    assert len(seen) == 15 == len(before) and sorted(path.name for path in masks.glob("[!.]*")) == ["ant", "cow", "two"]
    evaluate(Davis(small_davis), counting, out=tmp_path / "one", **options)
    assert len(seen) == 15  # found again
    with pytest.raises(InputError, match="masks holds results of another run .source name was 'pixels of 4' and is"):
        evaluate(Davis(small_davis), Copy(), out=tmp_path / "two", **options)
    assert not (tmp_path / "two").exists()
    make.save(small_davis / "Annotations" / "480p" / "ant" / "00000.png", make.boxes((1, 0, 0)))
    with pytest.raises(InputError, match="ant.json is about another video 'ant' than the one given"):
        evaluate(Davis(small_davis), counting, out=tmp_path / "three", names=["ant"], **options)
    assert {path: path.read_bytes() for path in masks.rglob("*.png")} == before


def test_a_process_waits_for_the_files_that_others_write(small_davis, tmp_path, monkeypatch):
    out, waited = tmp_path / "out", []
    evaluate(Davis(small_davis), source(), RULES, out, report=quiet)
    more = dict(export=tmp_path / "masks", pictures=True, report=quiet)

    def meanwhile(seconds):
        waited.append(sorted(path.name for path in (out / "pictures").iterdir()))
        assert not (out / "index.html").exists()
        monkeypatch.setenv("RANK", "1")
        evaluate(Davis(small_davis), source(), RULES, out, **more)

    clock = SimpleNamespace(perf_counter=time.perf_counter, monotonic=time.monotonic, sleep=meanwhile)
    monkeypatch.setattr(ranks, "time", clock)  # not the module's own, which subprocess sleeps by as well
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    evaluate(Davis(small_davis), source(), RULES, out, **more)
    assert waited == [["ant.png"]] and (out / "index.html").is_file()


def test_a_process_does_not_wait_for_ever(small_davis, tmp_path, monkeypatch):
    """RANK and WORLD_SIZE, left over in an environment, name processes that do not exist; torchrun would watch them."""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(ranks, "PATIENCE", 0.0)
    said = []
    with pytest.raises(InputError, match=r"no other process has finished a video .* 2 are missing.* unset RANK and"):
        evaluate(Davis(small_davis), Copy(), RULES, tmp_path / "out", report=said.append)
    assert [path.name for path in (tmp_path / "out" / "videos").iterdir()] == ["ant.json"]


@pytest.mark.parametrize("launcher", ["environment", pytest.param("torchrun", marks=pytest.mark.slow)])
def test_two_processes_give_what_one_gives(launcher, trainer, small_davis, tmp_path, capsys):
    options = ["--data", small_davis, "--source", "pixels", "--protocol", "dino", "--size", "32x48", "--videos"]
    arguments = [str(word) for word in ["eval", "davis", *options, "--device", "cpu", "--out"]]
    two = [*arguments, str(tmp_path / "two"), "--export", str(tmp_path / "two" / "masks")]
    if launcher == "torchrun":
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        ended = subprocess.run(
            [*command, "cli.main", *two], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200
        )
        assert ended.returncode == 0, ended.stderr
        said = ended.stdout
    else:  # what torchrun hands to each process
        codes, said = trainer.run(two, two, root=tmp_path / "said")
        assert codes == [0, 0], said
    two_lines = [line for line in said.splitlines() if line.strip()]
    assert main([*arguments, str(tmp_path / "one"), "--export", str(tmp_path / "one" / "masks")]) == 0
    outputs = [two_lines, capsys.readouterr().out.splitlines()]
    two, one = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("two", "one"))
    assert two["row"] == one["row"]
    scores = [[(v["video"], v["scores"]) for v in each["videos"]] for each in (two, one)]
    assert scores[0] == scores[1] and [name for name, _ in scores[0]] == ["two", "ant", "cow"]
    written = ("index.html", "pictures/ant.png", "pictures/two.mp4", "masks/cow/00004.png")
    for name in ("global_results.csv", "per-sequence_results.csv", *written):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes(), name
    for lines in outputs:
        assert sum(line.startswith("J&F-Mean") for line in lines) == 1
        assert sum(line.split()[0] in ("two", "ant", "cow") for line in lines) == 3


def test_shares_are_even_and_the_same_everywhere(small_davis):
    videos = list(Davis(small_davis).videos())
    divide = ranks.divide
    assert [[v.name for v in share] for share in divide(videos, 2)] == [["ant"], ["two", "cow"]]
    assert [[v.name for v in share] for share in divide(videos[::-1], 2)] == [["ant"], ["cow", "two"]]
    assert [len(share) for share in divide(videos, 5)] == [1, 1, 1, 0, 0]


# ------------------------------------------------------------------------------------------------ controls


def test_copy_repeats_the_first_label(small_davis):
    result = evaluate(Davis(small_davis), tracker("copy", None), RULES, report=quiet)
    davis = Davis(small_davis)
    scores = {v.name: davis.score(v, [v.first] * len(v)) for v in davis.videos()}
    assert result.row == davis.row(scores) and tracker("copy", None).name == "copy (the first label repeated)"


def test_the_oracle_puts_true_labels_into_the_context():
    generator = torch.Generator().manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(4, 3, 5, 8, generator=generator), dim=-1)
    labels = torch.rand(4, 3, 5, 2, generator=generator)
    for rules in (protocol("dino", context=2, radius=2), protocol("paper", context=2, radius=2)):
        found = list(propagate(features, labels[0], rules, oracle=lambda t: labels[t]))
        blind = list(propagate(features, labels[0], rules))
        near, far = (1, 0) if rules.name.startswith("dino") else (0, 1)
        expected = propagate_step(features[3], Context(features[:3], labels[:3], near, far), rules)
        torch.testing.assert_close(found[2], expected, rtol=0, atol=1e-6)
        assert not torch.allclose(blind[2], expected, atol=0.01)
        assert torch.equal(found[0], blind[0])  # the first step knows frame 0 alone
        some = list(propagate(features, labels[0], rules, oracle=lambda t: None))
        assert all(map(torch.equal, some, blind))


def test_the_oracle_is_better_and_says_what_it_is(small_davis, tmp_path, capsys):
    near = RULES.with_(radius=1)  # features that tell nothing: the true labels alone lead on
    nothing = Source("mine", lambda images: torch.ones(len(images), 8, 12, 3), 4, "w")
    blind = evaluate(Davis(small_davis), nothing, near, report=quiet)
    oracle = tracker("oracle:mine", lambda name: nothing)
    result = evaluate(Davis(small_davis), oracle, near, tmp_path / "out", pictures=True)
    assert result.row["J&F-Mean"] > blind.row["J&F-Mean"] + 0.01
    label = "oracle (true labels as context), mine"
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(label) and lines[7].startswith(label)
    assert json.loads((tmp_path / "out" / "results.json").read_text())["source"] == {"name": label, "weights": "w"}
    assert label in (tmp_path / "out" / "index.html").read_text()
    assert tracker("oracle", lambda name: source(name)).name == "oracle (true labels as context), pixels"
    with pytest.raises(InputError, match="an oracle takes a source of features"):
        tracker("oracle:copy", source)


def test_the_oracle_of_joints_uses_what_is_known(small_keypoints):
    file, pictures = small_keypoints
    rules = protocol("dino", size="32x48", radius=0)
    result = evaluate(Joints(file, pictures), Oracle(source()), rules, report=quiet)
    assert 0 <= result.row["PCK@0.5"] <= 1


def test_an_object_that_the_first_mask_lacks_does_not_disturb_the_oracle(small_davis, make):
    for t in range(1, 6):
        labels = make.boxes((1, 4 + t, 4 + 3 * t), (9, 20, 36))
        make.save(small_davis / "Annotations" / "480p" / "ant" / f"{t:05d}.png", labels)
    (video,) = Davis(small_davis).videos(["ant"])
    assert sorted(true_labels(video)) == [0, 1, 2, 3, 4, 5]
    results = list(follow(video, Oracle(source()), RULES))
    assert np.unique(results).tolist() == [0, 1]


# ------------------------------------------------------------------------------------------------ other benchmarks


def test_classes(small_camvid, tmp_path, capsys):
    camvid = CamVid(small_camvid)
    result = evaluate(camvid, source(), RULES, tmp_path / "out")
    (video,) = camvid.videos()
    results = list(follow(video, source(), RULES))
    counts = sum(confusion(truth, found, 11) for _, truth, found in video.truth(results))
    assert result.row == {"mIoU": mean_iou(counts)}
    assert capsys.readouterr().out.splitlines()[2].split()[:2] == ["camvid", "3"]
    again = evaluate(camvid, source(), RULES, tmp_path / "out", report=quiet)
    assert again.row == result.row


def test_joints_with_the_stricter_count_beside(small_jhmdb, tmp_path, capsys):
    lost = Source("nothing is found", lambda images: torch.zeros(len(images), 8, 12, 3), 4)
    jhmdb = JHMDB(small_jhmdb)
    for what in (source(), lost, Copy()):
        result = evaluate(jhmdb, what, RULES, tmp_path / what.name)
        (video,) = jhmdb.videos()
        results = np.stack(list(follow(video, what, RULES)))
        errors = joint_errors(np.stack([video.label(t) for t in range(4)]), results)
        found = (results[..., 0] >= 0) & ~np.isnan(errors)
        for alpha in (0.1, 0.2, 0.3, 0.4, 0.5):
            right = [np.mean(errors[1:, j] <= alpha) for j in range(15)]
            assert result.row[f"PCK@{alpha} strict"] == pytest.approx(np.mean(right), abs=1e-12)
            shares = [np.mean(errors[found[:, j], j] <= alpha) for j in range(15) if found[:, j].any()]
            expected = np.mean(shares) if shares else math.nan
            assert result.row[f"PCK@{alpha}"] == pytest.approx(expected, abs=1e-12, nan_ok=True)
        again = evaluate(jhmdb, what, RULES, tmp_path / what.name, report=quiet)
        assert str(again.row) == str(result.row)  # NaN is not itself
        text = (tmp_path / what.name / "results.json").read_text()
        json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
        assert "PCK@0.1 strict" in capsys.readouterr().out
    record = json.loads((tmp_path / source().name / "videos" / "catch" / "clip.json").read_text())
    assert record["scores"]["strict"] == [3] * 15  # frame 0 is not counted


def test_anyone_s_pictures_are_followed_but_not_scored(small_davis, tmp_path, capsys):
    pictures = small_davis / "JPEGImages" / "480p" / "two"
    own = Folder(pictures, small_davis / "Annotations" / "480p" / "two" / "00000.png")
    out, export = tmp_path / "out", tmp_path / "masks"
    result = evaluate(own, source(), RULES, out, export=export, pictures=True)
    assert result.row == {} and "nothing to score against" in capsys.readouterr().out
    assert len(list((export / "two").iterdir())) == 4 and (out / "index.html").is_file()


# ------------------------------------------------------------------------------------------------ training loops


def test_a_training_loop_is_handed_a_function(small_davis):
    torch.manual_seed(0)
    model = MaskedAutoencoderViT(48, 8, 48, 2, 4, decoder_embed_dim=32, decoder_depth=1, decoder_num_heads=4)
    score = propagation_score(Davis(small_davis), RULES, frames=4)
    expected = evaluate(Davis(small_davis), model_source("same", model), RULES, frames=4, report=quiet).row
    model.train()
    state = torch.get_rng_state()
    assert score(model) == expected and model.training and torch.equal(torch.get_rng_state(), state)
    model.eval()
    assert score(model) == expected and not model.training
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    assert score(model) != expected


def test_exported_masks_are_what_was_scored(small_davis, tmp_path):
    evaluate(Davis(small_davis), source(), RULES, tmp_path / "out", export=tmp_path / "masks", report=quiet)
    for video in Davis(small_davis).videos():
        results = list(follow(video, source(), RULES))
        found = sorted((tmp_path / "masks" / video.name).iterdir())
        assert [path.name for path in found] == [f"{path.stem}.png" for path in video.paths]
        for path, result in zip(found, results, strict=True):
            picture = Image.open(path)
            assert picture.mode == "P"
            np.testing.assert_array_equal(np.array(picture), result)  # as the official tool reads it
    (tmp_path / "masks" / "cow" / "00004.png").unlink()  # a finished video whose files are gone is followed again
    evaluate(Davis(small_davis), source(), RULES, tmp_path / "out", export=tmp_path / "masks", report=quiet)
    assert (tmp_path / "masks" / "cow" / "00004.png").is_file()


def test_bad_arguments(small_davis):
    davis = Davis(small_davis)
    with pytest.raises(InputError, match="1 frames of each video were asked for"):
        evaluate(davis, source(), RULES, frames=1)
    with pytest.raises(InputError, match="pictures need a folder"):
        evaluate(davis, source(), RULES, pictures=True)
    (small_davis / "ImageSets" / "2017" / "val.txt").write_text("two\ntwo\n")
    with pytest.raises(InputError, match="two videos are called 'two'"):
        evaluate(davis, source(), RULES)


def test_a_loop_of_one_s_own_over_videos(small_davis):
    """`records` is the whole evaluation: no folder, no lines, and any videos."""
    davis = Davis(small_davis)
    found = list(records(davis, davis.videos(["ant"]), Copy(), RULES))
    assert [(record["video"], record["frames"]) for record in found] == [("ant", 6)]
    assert davis.row({"ant": found[0]["scores"]})["J-Mean"] < 1
