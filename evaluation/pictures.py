"""Results as pictures: labels drawn over frames, truth and prediction side by side, and where they differ.

Colours are generated, never fetched; a mask's PNG carries them as its palette and its pixels are the labels.
Legend: H W pixels, J joints. A label is a mask [H, W] uint8 or joints [J, 2] (x, y; −1 or NaN: not there).
"""

import colorsys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from common.errors import InputError
from common.files import write_atomically
from evaluation.videos import Frame, Joints, Mask, Video

WriteVideo = Callable[[Path, Iterable[Frame], float], object]  # a path, frames [H, W, 3], frames a second

# Told apart by colour-blind people too (Okabe and Ito).
MISSED, ADDED, SWAPPED = (86, 180, 233), (230, 110, 0), (240, 228, 66)
COLUMNS = 6  # frames in a strip
STRIP_WIDTH, VIDEO_WIDTH = 288, 432  # pixels of one panel
RATE = 10.0  # frames a second of the videos of a data set, whose frames state no time
BAND = 22  # pixels for a line of text


@lru_cache
def palette() -> NDArray[np.uint8]:
    """A colour for each label, [256, 3]: black for the background, neighbours far apart in hue.

    The first ones are magenta and cyan, which few real things are.
    """
    tones = ((0.85, 1.0), (0.55, 0.95), (0.9, 0.7))
    colours = [(0.0, 0.0, 0.0)]
    colours += [colorsys.hsv_to_rgb((0.88 + 0.618034 * k) % 1, *tones[k // 8 % 3]) for k in range(255)]
    return np.round(255 * np.array(colours)).astype(np.uint8)


def save_mask(path: str | Path, mask: Mask) -> None:
    """Write a mask as a palette PNG whose indices are the labels, as DAVIS's tools read it."""
    picture = Image.fromarray(mask)
    picture.putpalette(palette().flatten().tolist())
    write_atomically(path, lambda file: picture.save(file, format="PNG"))


def save_picture(path: str | Path, picture: Frame) -> None:
    write_atomically(path, lambda file: Image.fromarray(picture).save(file, format="PNG"))


# ------------------------------------------------------------------------------------------------ one frame


def overlay(frame: Frame, label: Any) -> Frame:
    """A frame [H, W, 3] with its label: objects half transparent in a contour, or joints as dots."""
    if label.dtype.kind == "f":
        return _dots(frame.copy(), label, filled=True)
    label, drawn = as_mask(label), frame.copy()
    inside = label > 0
    drawn[inside] = (drawn[inside].astype(np.uint16) + palette()[label[inside]]) // 2
    return _contours(drawn, label)


def as_mask(label: Any) -> Mask:
    """Label numbers as they are, or other ids as numbers of 1 … 255 by which their colours are chosen."""
    return (
        label.astype(np.uint8)
        if label.max(initial=0) < 256
        else np.where(label > 0, label % 251 + 1, 0).astype(np.uint8)
    )


def difference(frame: Frame, truth: Any, result: Any, void: int = 256) -> Frame:
    """A greyed frame with what the truth alone holds, what the result alone holds, and where both name other objects.

    Joints: a line from the true place to the one found. void: labels of the truth from this one on are not scored.
    """
    grey = np.repeat(frame.mean(axis=2, keepdims=True) * 0.6 + 50, 3, axis=2).astype(np.uint8)
    if truth.dtype.kind == "f":
        return _arrows(grey, truth, result)
    counted = (truth != result) & (truth < void)
    for where, colour in ((result == 0, MISSED), (truth == 0, ADDED), ((truth > 0) & (result > 0), SWAPPED)):
        grey[counted & where] = colour
    return grey


def _contours(frame: Frame, mask: Mask) -> Frame:
    """Draw the borders between labels, in the colour of the larger one, about 1/240 of the short side wide."""
    width = max(3, 1 + 2 * round(min(mask.shape) / 480))
    kernel = np.ones((width, width), dtype=np.uint8)
    largest, smallest = cv2.dilate(mask, kernel), cv2.erode(mask, kernel)
    border = largest != smallest
    frame[border] = palette()[largest[border]]
    return frame


def _dots(frame: Frame, joints: Joints, *, filled: bool) -> Frame:
    radius = max(2, round(min(frame.shape[:2]) / 60))
    for index, place in enumerate(joints, start=1):
        if _is_known(place):
            colour = palette()[index].tolist()
            cv2.circle(frame, _pixel(place), radius + 1, (0, 0, 0), -1 if filled else 3, cv2.LINE_AA)
            cv2.circle(frame, _pixel(place), radius, colour, -1 if filled else 1, cv2.LINE_AA)
    return frame


def _arrows(frame: Frame, truth: Joints, result: Joints) -> Frame:
    for index, (true, found) in enumerate(zip(truth, result, strict=True), start=1):
        if _is_known(true) and _is_known(found):
            cv2.line(frame, _pixel(true), _pixel(found), palette()[index].tolist(), 2, cv2.LINE_AA)
    return _dots(frame, truth, filled=False)


def _is_known(place: NDArray[np.float64]) -> bool:
    return bool(place[0] >= 0 and place[1] >= 0)  # NaN is not


def _pixel(place: NDArray[np.float64]) -> tuple[int, int]:
    return round(float(place[0])), round(float(place[1]))


def affinity_figure(past: Frame, future: Frame, affinity: Any, patch: tuple[int, int]) -> Any:
    """A matplotlib figure: the past frame with a chosen patch (row, column) in a box, and over the future frame the
    cosines [h, w] of that patch with each of its patches, the largest in a box. The lower half of them stays dark.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    values = np.asarray(affinity, dtype=np.float64)
    (height, width), (h, w) = past.shape[:2], values.shape
    if not (0 <= patch[0] < h and 0 <= patch[1] < w):
        raise InputError(f"the patch {patch} (row, column) lies outside of the {h}×{w} patches")
    best = divmod(int(values.argmax()), w)
    figure = Figure(figsize=(9, 9 / 2 * height / width + 0.4), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, frame, (row, column), colour, title in (
        (axes[0], past, patch, "magenta", "the chosen patch"),
        (axes[1], future, best, "cyan", "how much each patch of the later frame is like it"),
    ):
        axis.imshow(frame, extent=(0, w, h, 0), aspect=height / h * w / width)
        axis.add_patch(Rectangle((column, row), 1, 1, fill=False, edgecolor=colour, linewidth=2))
        axis.set_title(title, fontsize=9)
        axis.set_axis_off()
    colours: dict[str, Any] = dict(cmap="inferno", alpha=0.75, vmin=np.median(values))
    heat = axes[1].imshow(values, extent=(0, w, h, 0), aspect=height / h * w / width, **colours)
    figure.colorbar(heat, ax=axes[1], shrink=0.8, label="cosine")
    return figure


# ------------------------------------------------------------------------------------------------ a video


def show(
    folder: Path,
    video: Video,
    truths: Mapping[int, Any],
    results: Sequence[Any],
    *,
    void: int = 256,
    write_video: WriteVideo | None = None,
) -> None:
    """Write `<folder>/<video>.png`, a strip of a few frames, and with `write_video` an mp4 of all of them beside it.

    truths: the true labels by frame; a frame without one shows its prediction alone.
    """
    if write_video:
        path = folder / f"{video.name}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(path, side_by_side(video, truths, results, void), RATE)
    save_picture(folder / f"{video.name}.png", strip(video, truths, results, void))


def strip(video: Video, truths: Mapping[int, Any], results: Sequence[Any], void: int = 256) -> Frame:
    """A few frames from the first to the last, each as a column: truth, prediction, where they differ."""
    labelled = [index for index in range(1, len(video)) if index in truths] or list(range(1, len(video)))
    chosen = [labelled[k] for k in np.unique(np.linspace(0, len(labelled) - 1, COLUMNS).round().astype(int))]
    columns = []
    for index, frame in zip(chosen, video.frames(chosen), strict=True):
        panels = _panels(frame, truths.get(index), results[index], void)
        small = [_scaled(panel, STRIP_WIDTH) for panel in panels]
        columns.append(np.concatenate([_band(f"frame {index}", STRIP_WIDTH), *small]))
    return np.concatenate(columns, axis=1)


def side_by_side(video: Video, truths: Mapping[int, Any], results: Sequence[Any], void: int = 256) -> Iterator[Frame]:
    """All frames: truth, prediction and where they differ in a row; the last truth stands until there is another."""
    scored = len(truths) > 1
    for index, frame in enumerate(video.frames()):
        truth = truths.get(index)
        panels = _panels(frame, truth, results[index], void) if truth is not None or not scored else [
            frame, overlay(frame, results[index]), frame
        ]  # fmt: skip
        titles = ("truth" if truth is not None else "no truth", "prediction", "differ") if scored else ("prediction",)
        drawn = [
            np.concatenate([_band(title, VIDEO_WIDTH), _scaled(panel, VIDEO_WIDTH)])
            for title, panel in zip(titles, panels[-len(titles) :], strict=True)
        ]
        yield even(np.concatenate(drawn, axis=1))


def tracking_strip(tracked: Sequence[tuple[Frame, Mask]], numbers: Sequence[int] | None = None) -> Frame:
    """A few of the frames that `track` yields, from the first to the last, in a row, with what was followed.

    numbers: what the frames are called, unless they are counted from 0.
    """
    columns = []
    for index in np.unique(np.linspace(0, len(tracked) - 1, COLUMNS).round().astype(int)):
        title = "frame 0, as marked" if index == 0 else f"frame {numbers[index] if numbers else index}"
        columns += [np.concatenate([_band(title, STRIP_WIDTH), _scaled(overlay(*tracked[index]), STRIP_WIDTH)])]
    return np.concatenate(columns, axis=1)


def square(frame: Frame, aspect: float) -> Frame:
    """A frame of pixels that are `aspect` as wide as high, made wider or higher so that they become square."""
    height, width = frame.shape[:2]
    size = (round(width * max(aspect, 1)), round(height / min(aspect, 1)))
    return frame if aspect == 1 else np.asarray(cv2.resize(frame, size, interpolation=cv2.INTER_LINEAR), dtype=np.uint8)


def even(frame: Frame) -> Frame:
    """A frame whose sides are even, as the pixel format of common videos needs: its last row or column twice."""
    height, width = frame.shape[:2]
    return np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge") if height % 2 or width % 2 else frame


def _panels(frame: Frame, truth: Any, result: Any, void: int) -> list[Frame]:
    if truth is None:
        return [overlay(frame, result)]
    shown = truth if truth.dtype.kind == "f" else as_mask(np.where(truth < void, truth, 0))
    return [overlay(frame, shown), overlay(frame, result), difference(frame, truth, result, void)]


def _scaled(picture: Frame, width: int) -> Frame:
    height = round(picture.shape[0] * width / picture.shape[1])
    way = cv2.INTER_AREA if width < picture.shape[1] else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(picture, (width, height), interpolation=way), dtype=np.uint8)


@lru_cache(maxsize=64)
def _band(text: str, width: int) -> Frame:
    """A line of text, black on white."""
    picture = Image.new("RGB", (width, BAND), "white")
    ImageDraw.Draw(picture).text((6, 3), text, fill="black", font=ImageFont.load_default(14))
    return np.asarray(picture)
