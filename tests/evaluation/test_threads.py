"""Reading ahead, scoring and writing in threads: in order, bounded, the same errors, and over at once on Ctrl-C."""

import time
from concurrent.futures import CancelledError
from dataclasses import replace
from threading import Event, current_thread, main_thread

import numpy as np
import pytest

from common.errors import InputError
from evaluation import threads
from evaluation.benchmarks.davis import Davis
from evaluation.controls import Copy
from evaluation.features import Source, pixel_features
from evaluation.follow import AHEAD, follow_mask
from evaluation.protocols import protocol
from evaluation.run import evaluate, records, score_results
from evaluation.threads import Stoppable, ahead, finished

RULES = protocol("dino", size="32x48", top_k=2, context=2)


def quiet(line):
    """Nobody reads these lines."""


def test_what_is_read_ahead_is_in_order_and_bounded():
    asked = []

    def items():
        for number in range(9):
            asked.append((number, current_thread() is main_thread()))
            yield number

    stream = ahead(items(), 2)
    for number in range(9):
        assert next(stream) == number
        time.sleep(0.01)
        assert len(asked) <= number + 3
    assert next(stream, None) is None and asked == [(number, False) for number in range(9)]


def test_an_error_arrives_in_its_turn_and_nothing_goes_on_after_the_end():
    asked = []

    def items():
        for number in range(9):
            asked.append(number)
            if number == 3:
                raise InputError("three is damaged")
            yield number

    found = []
    with pytest.raises(InputError, match="three is damaged"):
        found.extend(ahead(items(), 5))
    assert asked == [0, 1, 2, 3]
    stream = ahead((asked.append(number) for number in range(99)), 2)
    next(stream)
    stream.close()
    length = len(asked)
    time.sleep(0.02)
    assert len(asked) == length


def test_frames_are_read_no_further_than_stated():
    read = []

    def frames():
        for number in range(20):
            read.append(number)
            yield np.full((32, 48, 3), number, np.uint8)

    first = np.zeros((32, 48), np.uint8)
    first[:16] = 1
    masks = follow_mask(frames(), first, lambda images: pixel_features(images, 4), RULES, patch_size=4, batch=2)
    for number, _ in enumerate(masks, start=1):
        time.sleep(0.005)
        assert len(read) <= 2 * (number // 2 + 1 + AHEAD)
    assert len(read) == 20


def test_jobs_end_in_order_while_the_next_are_made():
    made, at_once, most = [], [0], [0]

    def job(number):
        at_once[0] += 1
        most[0] = max(most[0], at_once[0])
        time.sleep(0.01 * (3 - number % 3))
        at_once[0] -= 1
        return number, current_thread() is main_thread()

    def jobs():
        for number in range(12):
            made.append(number)
            yield lambda: job(number)  # noqa: B023  the generator waits until it is taken

    for place, (number, in_main) in enumerate(finished((lambda n=n: job(n) for n in range(12)), Event(), workers=3)):
        assert number == place and not in_main
    assert 2 <= most[0] <= 3
    for place, _ in enumerate(finished(jobs(), Event(), workers=2)):
        assert len(made) <= place + 4


def test_when_following_fails_what_is_at_hand_is_finished(small_davis, tmp_path):
    """`two` and `ant` were followed before the damaged picture of `cow`."""
    (small_davis / "JPEGImages" / "480p" / "cow" / "00003.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    davis, out = Davis(small_davis), tmp_path / "out"
    source = Source("pixels of 4", lambda images: pixel_features(images, 4), 4)
    with pytest.raises(InputError, match="00003.png is damaged or no picture"):
        evaluate(davis, source, RULES, out, report=quiet)
    assert sorted(path.name for path in (out / "videos").iterdir()) == ["ant.json", "two.json"]


def test_an_error_while_scoring_is_the_same_sentence(small_davis, tmp_path, make):
    make.save(small_davis / "Annotations" / "480p" / "two" / "00002.png", make.boxes((1, 4, 4))[:30])
    unchecked = [replace(video, check=lambda: None) for video in Davis(small_davis).videos()]
    with pytest.raises(InputError, match=r"two/00002.png is 30×48, but its picture .*two/00002.png is 32×48"):
        list(records(Davis(small_davis), unchecked, Copy(), RULES))
    evaluate(Davis(small_davis), Copy(), RULES, names=["ant", "cow"], export=tmp_path / "masks", report=quiet)
    (tmp_path / "masks" / "cow" / "00002.png").unlink()
    with pytest.raises(InputError, match=r"cow/00002.png does not exist"):
        score_results(Davis(small_davis), tmp_path / "masks", names=["ant", "cow"], report=quiet)


def test_ctrl_c_ends_the_scoring_at_once(small_davis, tmp_path, monkeypatch):
    monkeypatch.setattr(threads, "GRACE", 0.05)
    begun, looked_at = Event(), []

    class Slow(Davis):
        def score(self, video, results):
            begun.set()
            for index, _, _ in video.truth(results):
                looked_at.append(index)
                time.sleep(0.1)
            return super().score(video, results)

        def follow(self, video, by, protocol, *, batch=1):
            if video.name == "ant":
                begun.wait()
                raise KeyboardInterrupt
            yield from super().follow(video, by, protocol, batch=batch)

    with pytest.raises(KeyboardInterrupt):
        evaluate(Slow(small_davis), Copy(), RULES, tmp_path / "out", report=quiet)
    assert len(looked_at) <= 3 and not (tmp_path / "out" / "videos").exists()


def test_a_list_that_stops():
    ended = Event()
    values = Stoppable([5, 6, 7], ended)
    np.testing.assert_array_equal(np.stack(values), [5, 6, 7])
    stream = iter(values)
    assert next(stream) == 5 and values[-1] == 7 and len(values) == 3
    ended.set()
    with pytest.raises(CancelledError):
        next(stream)
