"""Single frames as compressed bytes: JPEG through simplejpeg (libjpeg-turbo), other formats through Pillow."""

import io
from collections.abc import Callable, Sequence

import numpy as np
import simplejpeg
from PIL import Image

from dataset_loader.decoding import DecodeError

QUALITY = 90


def encode_jpeg(image: np.ndarray, quality: int = QUALITY) -> bytes:
    """uint8 RGB [H, W, 3] → JPEG with colours at half the resolution, as videos have them; the same bytes each time."""
    return simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality, "RGB", "420")


def decode_image(data: bytes, place: Callable[[int, int], np.ndarray] | None = None) -> np.ndarray:
    """A JPEG, PNG or other picture → uint8 RGB [H, W, 3]. Raises ValueError if it is damaged or no picture.

    place: gives, for the height and the width, the array to decode into.
    """
    try:
        if data[:2] == b"\xff\xd8":
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
            if colours != "CMYK":
                return simplejpeg.decode_jpeg(data, "RGB", buffer=place(height, width) if place else None)
        with Image.open(io.BytesIO(data)) as image:
            pixels = np.asarray(to_rgb(image))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # Pillow's, of broken PNGs
        raise ValueError(str(error)) from error
    if place is None:
        return pixels
    placed = place(*pixels.shape[:2])
    placed[:] = pixels
    return placed


def to_rgb(image: Image.Image) -> Image.Image:
    """A picture as RGB of 8 bit: grey of 16 bit by its brightest value, 65535, transparent parts on black.

    Raises ValueError for numbers whose white nobody knows.
    """
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image, np.float64) / 257).round().clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, image.convert("RGBA"))
    return image.convert("RGB")


def decode_numbered(path: str, numbers: Sequence[int] | np.ndarray, read: Callable[[int], bytes]) -> np.ndarray:
    """Decode the pictures that `read` gives for some numbers, each once: uint8 RGB [n, H, W, 3] in the order asked for.

    path: what a DecodeError names, if a picture is damaged or they differ in size.
    """
    wanted = np.asarray(numbers, dtype=np.int64).tolist()
    images: np.ndarray | None = None
    rows: dict[int, int] = {}

    def place(height: int, width: int) -> np.ndarray:
        nonlocal images
        if images is None:
            images = np.empty((len(wanted), height, width, 3), np.uint8)
        elif images.shape[1:3] != (height, width):
            raise DecodeError(path, f"its frames change size, from {images.shape[1:3]} to {(height, width)} pixels")
        return images[row]

    for row, number in enumerate(wanted):
        if number in rows and images is not None:
            images[row] = images[rows[number]]
            continue
        rows[number] = row
        try:
            decode_image(read(number), place)
        except ValueError as error:
            if isinstance(error, DecodeError):
                raise
            raise DecodeError(path, f"frame {number} cannot be decoded ({error})") from error
    assert images is not None, "at least one number is asked for"
    return images
