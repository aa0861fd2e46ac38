"""A manifest tells the truth about good and bad files, whatever happens to the processes that find it out."""

import multiprocessing
import os
import signal
import sys
import threading
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cli.main import main
from common.errors import InputError
from dataset_loader import Video, decode_all, get_kinetics_dataset
from dataset_loader.preparing.encoding import write_video
from dataset_loader.preparing.manifest import COLUMNS, Row, Rules, default_path, read_manifest, write_manifest
from dataset_loader.preparing.splitting import split_data
from dataset_loader.preparing.validate import content_hash, measure, validate
from tests.dataset_loader.cutting import copy_cut
from tests.dataset_loader.odd_videos import ODD
from tests.dataset_loader.preparing.kills import kill_at_random_moments

ANY = Rules(min_seconds=0.5, min_fps=None, max_fps=None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, pictures):
    """Twelve clips of one second in two folders, and a few that are no videos."""
    folder = tmp_path_factory.mktemp("validate") / "clips"
    for number in range(12):
        path = folder / f"part{number % 2}" / f"clip {number}.mp4"
        write_video(path, np.roll(pictures, number, axis=2), 30, gop=10)
    (folder / "empty.mp4").touch()
    (folder / "text.mkv").write_text("hello")
    os.mkfifo(folder / "pipe.mp4")
    return folder


@pytest.fixture(scope="module")
def undisturbed(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "m.csv"
    validate(folder, out=out, rules=ANY, jobs=2)
    return out.read_bytes()


# ---- What is measured


def test_a_row_tells_what_a_plain_decode_finds(tmp_path, pictures):
    times = np.cumsum(np.r_[0, np.tile([0.02, 0.05], 15)])[:30] + 2
    write_video(tmp_path / "a.mkv", pictures, times, gop=7)
    row = measure((str(tmp_path), "a.mkv"))
    _, decoded = decode_all(tmp_path / "a.mkv")
    assert row.frames == len(decoded) == 30 and row.damaged == 0
    assert row.seconds == pytest.approx(times[-1] - times[0] + np.median(np.diff(times)), abs=2e-3)
    assert row.fps == pytest.approx(29 / (times[-1] - times[0]), abs=0.1) and row.variable
    assert (row.width, row.height, row.codec, row.keyframe_spacing) == (64, 48, "h264", 7)
    assert row.bytes == (tmp_path / "a.mkv").stat().st_size and row.status == ""
    assert row.hash == content_hash(str(tmp_path / "a.mkv"))
    write_video(tmp_path / "b.mkv", pictures, 60)
    other = measure((str(tmp_path), "b.mkv"))
    assert not other.variable and other.fps == pytest.approx(60, abs=0.1) and other.hash != row.hash


@pytest.mark.parametrize("times", [np.arange(4) / 30, np.arange(30) / 240, np.arange(2) * 60.0])
def test_a_video_that_gives_no_pair_is_named(tmp_path, pictures, times):
    """Shorter than the smallest gap, or all gaps too long: the loader refuses it, whatever its length may be."""
    write_video(tmp_path / "a.mkv", pictures[: len(times)], times)
    row = replace(ANY, min_seconds=None).judge(measure((str(tmp_path), "a.mkv")))
    assert (
        row.status == "short"
        and row.reason == "has no frames with another 0.133 to 1.6 s later, and no pause in between"
    )
    with pytest.raises(InputError, match="a.mkv.*no two frames 0.133 to 1.6 s apart"):
        get_kinetics_dataset([tmp_path / "a.mkv"])[0]


def test_cuts_are_not_damaged(tmp_path, pictures):
    write_video(tmp_path / "whole.mp4", pictures, 30, gop=10)
    write_video(tmp_path / "trimmed.mp4", pictures, np.arange(30) / 30 - 0.5, gop=10)  # an edit list hides 15 frames
    row = measure((str(tmp_path), "trimmed.mp4"))
    assert row.damaged == 0 and row.frames == 15
    for suffix in (".mp4", ".mkv", ".ts"):
        copy_cut(tmp_path / "whole.mp4", tmp_path / f"cut{suffix}", 0.5, 0.5)
        row = measure((str(tmp_path), f"cut{suffix}"))
        assert row.damaged == 0 and row.frames == len(decode_all(tmp_path / f"cut{suffix}")[0]), suffix


def test_a_file_that_breaks_off_is_damaged(tmp_path, pictures):
    """The table of an mp4 that begins with it tells of more frames than there are; Kinetics has such files."""
    write_video(tmp_path / "a.mp4", pictures, 30, options={"g": "5"})
    data = (tmp_path / "a.mp4").read_bytes()
    boxes, at = [], 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        boxes.append(data[at : at + size])
        at += size
    (moov,) = (box for box in boxes if box[4:8] == b"moov")
    moov_first = bytearray(boxes[0] + moov + b"".join(box for box in boxes[1:] if box is not moov))
    table = moov_first.index(b"stco") + 8
    for entry in range(int.from_bytes(moov_first[table : table + 4], "big")):
        place = slice(table + 4 + 4 * entry, table + 8 + 4 * entry)
        moov_first[place] = (int.from_bytes(moov_first[place], "big") + len(moov)).to_bytes(4, "big")
    (tmp_path / "whole.mp4").write_bytes(moov_first)
    (tmp_path / "broken.mp4").write_bytes(moov_first[: -len(moov_first) // 3])
    assert measure((str(tmp_path), "whole.mp4")).damaged == 0
    broken = measure((str(tmp_path), "broken.mp4"))
    assert 0 < broken.frames < 30 and broken.damaged >= 30 - broken.frames
    assert ANY.judge(broken).status == "damaged"


def test_pauses_and_resets_are_listed_by_themselves(tmp_path, pictures):
    """The rate, the length and whether it varies are those of the rest."""
    for name, pauses, longest, resets in [("pause.mkv", 1, 3600 + 1 / 30, 0), ("joined.ts", 0, 0, 1)]:
        ODD[name](tmp_path / name, pictures)
        row = measure((str(tmp_path), name))
        assert (row.pauses, row.resets, row.variable) == (pauses, resets, False), row
        assert row.longest_pause == pytest.approx(longest, abs=2e-3)
        assert row.fps == pytest.approx(30, abs=0.1) and row.seconds == pytest.approx(1, abs=0.01)


def test_random_access_is_compared_with_a_sequential_decode(tmp_path, pictures, monkeypatch):
    write_video(tmp_path / "a.mp4", pictures, 30)
    assert measure((str(tmp_path), "a.mp4")).differing == 0
    whole = Video.frames
    monkeypatch.setattr(Video, "frames", lambda self, numbers: (whole(self, numbers)[0] // 2, None))
    row = measure((str(tmp_path), "a.mp4"))
    assert row.differing == 2
    assert ANY.judge(row).status == "damaged" and "when it is read from its middle" in ANY.judge(row).reason


def test_rules_and_their_off_switches():
    good = Row("a.mp4", seconds=3.0, fps=29.97, frames=90, pasts=86, width=340, height=256)
    assert Rules().judge(good) == replace(good, status="ok")
    for change, status, switch in [
        ({"seconds": 2.99}, "short", {"min_seconds": None}),
        ({"fps": 25.0}, "rate", {"min_fps": None}),
        ({"fps": 60.0}, "rate", {"max_fps": None}),
        ({"width": 1, "height": 1}, "small", {"min_side": None}),
        ({"damaged": 3}, "damaged", {"max_damaged": None}),
        ({"pauses": 1, "resets": 2}, "clock", {"max_breaks": None}),
        ({"pasts": 0}, "short", {"min_pasts": None}),
    ]:
        bad = Rules().judge(replace(good, **change))
        assert bad.status == status and bad.reason
        assert Rules(**switch).judge(bad) == replace(bad, status="ok", reason="")
    rounded = replace(good, fps=30.012, seconds=2.999)  # 90 frames with times in milliseconds
    assert Rules().judge(rounded).status == "ok"
    assert Rules().judge(replace(good, seconds=1.0, fps=10.0)).reason.count(";") == 1
    only = replace(good, frames=1, fps=0.0, seconds=0.0)
    off = Rules(None, None, None, None, None, None, None)
    assert off.judge(only).status == "short" and "only one frame" in off.judge(only).reason
    lost = Row("b.mp4", status="unreadable", reason="is empty")
    assert off.judge(lost) == lost


def test_manifests_come_back_as_they_were(tmp_path):
    strange = os.fsdecode(b'b\xff",\n\r.mp4')
    rows = [Row("ü/a.mp4", 3, 4, "f" * 32, 1.5, fps=29.97, variable=True, codec="h264", split="test"), Row(strange)]
    write_manifest(tmp_path / "m.csv", rows)
    assert read_manifest(tmp_path / "m.csv") == sorted(rows, key=lambda row: row.path)
    first = (tmp_path / "m.csv").read_bytes()
    write_manifest(tmp_path / "m.csv", read_manifest(tmp_path / "m.csv")[::-1])
    assert (tmp_path / "m.csv").read_bytes() == first
    write_manifest(tmp_path / "saved.csv", rows[:1])
    text = (tmp_path / "saved.csv").read_text(encoding="utf-8")
    for encoding in ("utf-8-sig", "utf-16"):  # by a spreadsheet
        (tmp_path / "saved.csv").write_bytes(text.encode(encoding))
        assert read_manifest(tmp_path / "saved.csv") == rows[:1]
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="is not a manifest"):
        read_manifest(tmp_path / "other.csv")
    (tmp_path / "torn.csv").write_text(",".join(COLUMNS) + "\na.mp4,x\n")
    with pytest.raises(InputError, match="line 2 is no row"):
        read_manifest(tmp_path / "torn.csv")


# ---- A whole folder


def test_the_list_of_a_folder(folder, undisturbed, tmp_path, capsys):
    (tmp_path / "m.csv").write_bytes(undisturbed)
    rows = {row.path: row for row in read_manifest(tmp_path / "m.csv")}
    assert len(rows) == 15 and Counter(row.status for row in rows.values()) == {"ok": 12, "unreadable": 3}
    assert rows["empty.mp4"].reason == "is empty" and "not a regular file" in rows["pipe.mp4"].reason
    assert "cannot be opened as a video" in rows["text.mkv"].reason
    assert len({row.hash for row in rows.values() if row.status == "ok"}) == 12
    before = sorted(folder.rglob("*"))
    validate(folder, out=tmp_path / "m.csv", rules=Rules(min_seconds=2), jobs=1)  # nothing to decode
    printed = capsys.readouterr().out
    assert "15 of them known; 0 to decode" in printed and "short" in printed
    assert Counter(row.status for row in read_manifest(tmp_path / "m.csv")) == {"short": 12, "unreadable": 3}
    assert sorted(folder.rglob("*")) == before and not list(tmp_path.glob(".*"))


def test_a_file_that_changes_is_decoded_again(tmp_path, pictures, capsys):
    for name in ("a", "b"):
        write_video(tmp_path / "v" / f"{name}.mp4", pictures, 30)
    validate(tmp_path / "v", rules=ANY, jobs=1)
    assert default_path(tmp_path / "v") == default_path(tmp_path / "v" / "x" / "..") == tmp_path / "v.manifest.csv"
    with pytest.raises(InputError, match="/ has nothing beside it"):
        default_path("/")
    write_video(tmp_path / "v" / "b.mp4", pictures[:20], 30)
    rows = validate(tmp_path / "v", rules=ANY, jobs=1)
    assert "1 of them known; 1 to decode" in capsys.readouterr().out
    assert [row.frames for row in rows] == [30, 20] and rows == read_manifest(tmp_path / "v.manifest.csv")


def test_a_read_only_place_stays_as_it_is(tmp_path, pictures):
    """Also for the superuser, whom no mode stops."""
    write_video(tmp_path / "shared" / "v" / "a.mp4", pictures, 30)
    (tmp_path / "shared").chmod(0o555)
    try:
        with pytest.raises(InputError, match="is read-only; name another place for the list with --out"):
            validate(tmp_path / "shared" / "v", rules=ANY, jobs=1)
        assert [path.name for path in (tmp_path / "shared").iterdir()] == ["v"]
        assert len(validate(tmp_path / "shared" / "v", out=tmp_path / "m.csv", rules=ANY, jobs=1)) == 1
    finally:
        (tmp_path / "shared").chmod(0o755)


def test_shards_are_disjoint_complete_and_taken_over(folder, undisturbed, tmp_path, capsys):
    out = tmp_path / "m.csv"
    parts = [validate(folder, out=out, rules=ANY, jobs=1, shard=f"{k}/3") for k in (1, 2, 3)]
    names = [row.path for rows in parts for row in rows]
    assert len(names) == len(set(names)) == 15 and not out.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"m.{k}-of-3.csv" for k in (1, 2, 3)]
    validate(folder, out=out, rules=ANY, jobs=1)
    assert out.read_bytes() == undisturbed and "0 to decode" in capsys.readouterr().out


@contextmanager
def interfering(signal_number, times, out):
    """Send a signal to processes at work, from the second result on; yields the list of those that got it."""
    journal = out.with_name(f".{out.name}.journal")
    over = threading.Event()
    sent: list[int] = []

    def send():
        while len(sent) < times and not over.wait(0.01):
            workers = [p.pid for p in multiprocessing.active_children() if p.pid not in sent]
            if workers and journal.exists() and journal.stat().st_size:
                with suppress(ProcessLookupError):
                    os.kill(workers[0], signal_number)
                    if signal_number == signal.SIGSTOP and not reads_a_video(workers[0]):
                        os.kill(workers[0], signal.SIGCONT)  # it was between two files, where it would only be replaced
                        continue
                    sent.append(workers[0])

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield sent
    finally:
        over.set()
        thread.join()


def reads_a_video(process):
    return any(os.readlink(file).endswith(".mp4") for file in Path(f"/proc/{process}/fd").iterdir())


def test_processes_that_are_killed_make_no_difference(folder, undisturbed, tmp_path):
    out = tmp_path / "m.csv"
    with interfering(signal.SIGKILL, 3, out) as killed:
        validate(folder, out=out, rules=ANY, jobs=2)
    assert killed
    validate(folder, out=out, rules=ANY, jobs=2)  # should one file have been hit twice
    assert out.read_bytes() == undisturbed


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems do not tell what a process reads")
def test_a_decoder_that_stops_is_listed_and_tried_again_later(folder, undisturbed, tmp_path):
    out = tmp_path / "m.csv"
    with interfering(signal.SIGSTOP, 1, out):
        rows = validate(folder, out=out, rules=ANY, jobs=1, silence=3)
    (hung,) = (row for row in rows if row.status == "hung")
    assert hung.reason == "gave nothing for 3 s" and hung.bytes == (folder / hung.path).stat().st_size
    validate(folder, out=out, rules=ANY, jobs=2)
    assert out.read_bytes() == undisturbed


@pytest.mark.parametrize("kills", [1, pytest.param(30, marks=pytest.mark.slow)])
def test_killed_at_any_moment(kills, folder, undisturbed, tmp_path):
    out = tmp_path / "m.csv"
    journal = out.with_name(f".{out.name}.journal")

    def progress():
        return journal.exists() and journal.stat().st_size

    def run_to_the_end():
        validate(folder, out=out, rules=ANY, jobs=2)
        assert out.read_bytes() == undisturbed
        assert [path.name for path in out.parent.iterdir()] == [out.name]
        out.unlink()

    code = (
        "from pathlib import Path\nfrom dataset_loader.preparing.validate import Rules, validate\n"
        f"validate({str(folder)!r}, out={str(out)!r}, rules={ANY!r}, jobs=2)"
    )
    kill_at_random_moments(code, kills, kills, progress=progress, run_to_the_end=run_to_the_end)


def test_a_journal_that_was_torn(folder, undisturbed, tmp_path, capsys):
    """Half a line, bytes of nobody, and a row of a file that is no more."""
    import json
    from dataclasses import asdict

    (tmp_path / "whole.csv").write_bytes(undisturbed)
    lines = [json.dumps([row.path, asdict(row)]).encode() for row in read_manifest(tmp_path / "whole.csv")]
    stranger = json.dumps(["gone.mp4", asdict(Row("gone.mp4", bytes=5))]).encode()
    journal = tmp_path / ".m.csv.journal"
    journal.write_bytes(b"\n".join([*lines[:4], b"\0\0\0", b"{}", b'["a.mp4", {"x": 1}]', stranger, lines[5][:-30]]))
    validate(folder, out=tmp_path / "m.csv", rules=ANY, jobs=1)
    assert "15 files, 4 of them known" in capsys.readouterr().out
    assert (tmp_path / "m.csv").read_bytes() == undisturbed


def test_quarantine_moves_what_is_bad_and_nothing_else(tmp_path, pictures):
    folder, away = tmp_path / "v", tmp_path / "bad"
    write_video(folder / "good.mp4", pictures, 30)
    write_video(folder / "deep" / "short.mp4", pictures[:9], 30)
    (folder / "empty.mp4").touch()
    rows = validate(folder, rules=ANY, jobs=1)
    listed = default_path(folder).read_bytes()
    assert len(list(folder.rglob("*.mp4"))) == 3
    away.mkdir()
    (away / "empty.mp4").write_text("mine")
    with pytest.raises(InputError, match="is there already; nothing was moved"):
        validate(folder, rules=ANY, jobs=1, quarantine=away)
    assert len(list(folder.rglob("*.mp4"))) == 3 and (away / "empty.mp4").read_text() == "mine"
    (away / "empty.mp4").unlink()
    (away / "deep").mkdir()
    os.rename(folder / "deep" / "short.mp4", away / "deep" / "short.mp4")  # as a run leaves it that is killed here
    assert validate(folder, rules=ANY, jobs=1, quarantine=away) == rows
    assert default_path(folder).read_bytes() == listed
    assert [str(p.relative_to(folder)) for p in folder.rglob("*.mp4")] == ["good.mp4"]
    assert {str(p.relative_to(away)) for p in away.rglob("*.mp4")} == {"deep/short.mp4", "empty.mp4"}
    for wrong in (folder / "bad", tmp_path, folder):
        with pytest.raises(InputError, match="lie in one another"):
            validate(folder, rules=ANY, jobs=1, quarantine=wrong)
    with pytest.raises(InputError, match="does not go with --shard"):
        validate(folder, rules=ANY, jobs=1, quarantine=away, shard="1/2")


def test_a_later_validate_keeps_the_sides(folder, tmp_path):
    out = tmp_path / "m.csv"
    validate(folder, out=out, rules=ANY, jobs=2)
    split_data(out, test_share=0.5)
    sides = [row.split for row in read_manifest(out)]
    assert {"train", "test", ""} == set(sides)
    assert [row.split for row in validate(folder, out=out, rules=ANY, jobs=1)] == sides


# ---- The command


def test_the_commands(tmp_path, pictures, capsys, command):
    for k in range(4):
        write_video(tmp_path / "v" / f"{k}.mp4", np.roll(pictures, k, axis=1), 30)
    v = str(tmp_path / "v")
    assert command("data validate", v, "--jobs", "1", "--min-seconds", "None") == 0
    assert "ok                4" in capsys.readouterr().out
    assert command("data split", v, "--test-share", "0.5") == 0
    assert "train: " in capsys.readouterr().out
    for name, words, sentence in [
        ("data validate", ["nowhere"], "nowhere is not a folder"),
        ("data validate", [v, "--shard", "3/2"], "the shard is '3/2'"),
        ("data validate", [v, "--jobs", "0"], "jobs is 0"),
        ("data validate", [v, "--quarantine", v], "lie in one another"),
        ("data validate", [v, "--out", f"{v}/0.mp4"], "is not a manifest"),
        ("data split", ["nowhere"], "nowhere cannot be read as a manifest"),
        ("data split", [v, "--test-share", "2"], "the share to hold out is 2"),
        ("data split", [v, "--test", v], "lies in"),
    ]:
        assert command(name, *words) == 2, (name, words)
        error = capsys.readouterr().err
        assert sentence in error and len(error.splitlines()) == 1, error


@pytest.fixture
def command(monkeypatch):
    """Run one command, whether or not the list of all has it yet."""
    import cli.main

    def run(name, *words):
        monkeypatch.setitem(cli.main.COMMANDS, name, "")
        return main([*name.split(), *words])

    return run
