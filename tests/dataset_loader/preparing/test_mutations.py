"""Files that are damaged in any way, or odd: each gets its row, with a reason, in bounded memory."""

import io
import multiprocessing
import os
import random
import threading
import wave
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from dataset_loader.preparing.encoding import write_video
from dataset_loader.preparing.manifest import Rules
from dataset_loader.preparing.validate import validate
from tests.dataset_loader.odd_videos import ODD

ANY = Rules(min_seconds=0.5, min_fps=None, max_fps=None)


def audio_only():
    data = io.BytesIO()
    with wave.open(data, "wb") as file:
        file.setnchannels(1), file.setsampwidth(2), file.setframerate(8000)
        file.writeframes(bytes(16000))
    return data.getvalue()


def mutated(folder, pictures, count, seed=0):
    """Write `count` files, each damaged in another way; {name: (kind, what its reason must say, or None)}."""
    generator = random.Random(seed)
    made = {}
    bases = {}
    for suffix, codec in [(".mp4", "libx264"), (".mkv", "libx264"), (".ts", "libx264"), (".avi", "mpeg4"),
                          (".mov", "mpeg4"), (".ts", "mpeg2video"), (".webm", "libvpx-vp9")]:  # fmt: skip
        path = folder.parent / f"base{suffix}"
        fast = {"deadline": "realtime", "cpu-used": "8"} if codec == "libvpx-vp9" else None
        write_video(path, pictures, 30, codec=codec, options=fast)
        bases[codec, suffix] = path.read_bytes()
    odd = {}
    for name, make in ODD.items():
        make(path := folder.parent / name, pictures)
        suffix, kind = path.suffix, path.stem
        bases[kind, suffix] = path.read_bytes()
        odd[kind] = suffix, bases[kind, suffix], {"pause": "its clock pauses", "joined": "starts anew"}.get(kind, "")
    lossless = dict(codec="ffv1", pixel_format="yuv444p")
    for kind, seen, times, says, options in [
        ("one.mp4", pictures[:1], 30, "only one frame", {}),
        ("tiny.mkv", pictures[:, :1, :1], 30, "is 1×1, under 16 pixels", lossless),
        ("odd sides.mkv", pictures[:, :37, :51], 30, "", lossless),
        ("instant.mkv", pictures, [0.0] * 30, "shows all of its 30 frames at one time", lossless),
        ("instant, too.mp4", pictures, [0.0] * 30, "shows all of its 30 frames at one time", {}),
    ]:
        write_video(path := folder.parent / kind, seen, times, **options)
        odd[path.stem] = path.suffix, path.read_bytes(), says
    odd |= {
        "empty": (".mp4", b"", "is empty"),
        "text": (".mkv", b"This is not a video.\n" * 20, "cannot be opened as a video"),
        "audio": (".mp4", audio_only(), "no video stream"),
    }
    kinds = ["cut", "flip", "flip", "noise", "zeros", "header", *odd]
    folder.mkdir()
    for number in range(count):
        kind = kinds[number % len(kinds)]
        (_, suffix), data = generator.choice(sorted(bases.items()))
        data, says = bytearray(data), None
        if kind == "cut":
            del data[generator.randrange(1, len(data)) :]
        elif kind == "flip":
            for _ in range(generator.choice([1, 10, 100])):
                data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
        elif kind in ("noise", "zeros"):
            first = generator.randrange(len(data))
            size = min(len(data) - first, generator.randrange(1, 2000))
            data[first : first + size] = generator.randbytes(size) if kind == "noise" else bytes(size)
        elif kind == "header":
            data[generator.randrange(200)] = generator.randrange(256)
        else:
            suffix, data, says = odd[kind]
        name = os.fsdecode(f"{number:04}_{kind}".encode() + b"\xe9" * (number % 5 == 0)) + suffix  # no UTF-8
        (folder / name).write_bytes(data)
        (folder / f"._{name}").write_bytes(b"\0\5\x16\7")  # what macOS puts beside it, and nobody lists
        made[name] = kind, says
    (folder / ".ipynb_checkpoints").mkdir()
    (folder / ".ipynb_checkpoints" / "a.mp4").write_bytes(bases["libx264", ".mp4"])
    return made


MOST_MEMORY = 600 << 20  # bytes in a process: 420 MiB were measured, most of it libraries that it is forked with


@contextmanager
def peaks_of_memory():
    """Look at the processes at work all the time; yields {process id: the most bytes that it held}."""
    over = threading.Event()
    peaks: dict[int, int] = {}

    def look():
        while not over.wait(0.01):
            for process in multiprocessing.active_children():
                with suppress(OSError, StopIteration):
                    status = Path(f"/proc/{process.pid}/status").read_text().splitlines()
                    line = next(line for line in status if line.startswith("VmHWM:"))
                    peaks[process.pid] = int(line.split()[1]) * 1024

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield peaks
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize("count", [30, pytest.param(1000, marks=pytest.mark.slow)])
def test_mutations(count, tmp_path, pictures):
    made = mutated(tmp_path / "bad", pictures, count, seed=count // 1000)
    with peaks_of_memory() as peaks:
        rows = {row.path: row for row in validate(tmp_path / "bad", rules=ANY, jobs=2, silence=20)}
    assert peaks and max(peaks.values()) < MOST_MEMORY, peaks
    assert rows.keys() == made.keys()
    for name, (_, says) in made.items():
        row = rows[name]
        assert row.status in ("ok", "damaged", "clock", "short", "small", "unreadable"), row
        assert (row.reason == "") == (row.status == "ok"), row
        assert says is None or (says in row.reason if says else row.status == "ok"), row
        assert row.frames >= {"ok": 2, "damaged": 1}.get(row.status, 0), row
    counts = Counter((made[name][0], row.status) for name, row in rows.items())
    print(sorted(counts.items()))
    assert counts["flip", "damaged"] + counts["noise", "damaged"] + counts["cut", "damaged"] >= 3, counts
