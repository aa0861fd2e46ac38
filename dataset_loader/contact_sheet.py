"""A picture of frame pairs, to see with one's own eyes what a data set gives."""

from pathlib import Path
from typing import Any

import numpy as np

from common.errors import InputError
from common.files import write_atomically

MARGIN = 8  # pixels
TEXT = 320  # pixels for the words beside a pair
INK, PAPER, FAINT = (20, 20, 20), (255, 255, 255), (110, 110, 110)


def contact_sheet(dataset: Any, out: str | Path, *, count: int = 8) -> None:
    """Draw pairs into a PNG, one row a pair: f1, f2, the gap in seconds, the times and the name of the video.

    dataset: samples with `video` uint8 [F, 3, S, S], `time` [F] in seconds, and `path`; of F = 3 the frame between f1
    and f2 is a second one to predict from. count: pairs, evenly spread over the data set. Raises InputError if `out` is
    there already.
    """
    from PIL import Image, ImageDraw, ImageFont

    out = Path(out)
    if out.exists():
        raise InputError(f"{out} is there already; it is not overwritten")
    if count < 1:
        raise InputError(f"{count} pairs were asked for; it must be at least 1")
    chosen = np.unique(np.linspace(0, len(dataset) - 1, count).round().astype(int))
    samples = [dataset[int(k)] for k in chosen]
    side = samples[0]["video"].shape[-1]
    step = side + MARGIN
    left = len(samples[0]["video"]) * step + MARGIN
    sheet = Image.new("RGB", (left + TEXT, len(samples) * step + MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    large, small = ImageFont.load_default(18), ImageFont.load_default(13)
    for row, sample in enumerate(samples):
        top = MARGIN + row * step
        for column, frame in enumerate(sample["video"]):
            sheet.paste(Image.fromarray(frame.permute(1, 2, 0).numpy()), (MARGIN + column * step, top))
        past, *second, future = (float(at) for at in sample["time"])
        between = "".join(f"second at {at:.3f} s, " for at in second)
        draw.text((left, top), f"gap {future - past:.3f} s", INK, large)
        draw.text((left, top + 26), f"f1 at {past:.3f} s, {between}f2 at {future:.3f} s", FAINT, small)
        draw.text((left, top + 46), _wrapped(Path(sample["path"]).name), FAINT, small)
    try:
        write_atomically(out, lambda file: sheet.save(file, "png"))
    except OSError as error:
        raise InputError(f"{out} cannot be written ({error.strerror})") from error


def _wrapped(name: str, width: int = 42) -> str:
    """A name in lines of at most `width` letters; what the font lacks is a question mark."""
    plain = name.encode("latin-1", "replace").decode("latin-1")
    return "\n".join(plain[first : first + width] for first in range(0, len(plain), width))
