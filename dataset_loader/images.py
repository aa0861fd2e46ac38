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


def decode_image(data: bytes) -> np.ndarray:
    """A JPEG, PNG or other picture → uint8 RGB [H, W, 3]. Raises ValueError if it is damaged or no picture."""
    try:
        if data[:2] == b"\xff\xd8" and simplejpeg.decode_jpeg_header(data)[2] != "CMYK":
            return simplejpeg.decode_jpeg(data, "RGB")
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image.convert("RGB"))
    except (
        OSError,
        SyntaxError,
        Image.DecompressionBombError,
    ) as error:  # Pillow's, of broken PNGs
        raise ValueError(str(error)) from error


def decode_numbered(path: str, numbers: Sequence[int] | np.ndarray, read: Callable[[int], bytes]) -> np.ndarray:
    """Decode the pictures that `read` gives for some numbers, each once: uint8 RGB [n, H, W, 3] in the order asked for.

    path: what a DecodeError names, if a picture is damaged or they differ in size.
    """
    chosen, inverse = np.unique(np.asarray(numbers, dtype=np.int64), return_inverse=True)
    images = []
    for number in chosen.tolist():
        try:
            images.append(decode_image(read(number)))
        except ValueError as error:
            if isinstance(error, DecodeError):
                raise
            raise DecodeError(path, f"frame {number} cannot be decoded ({error})") from error
    if len({image.shape for image in images}) > 1:
        raise DecodeError(path, f"its frames change size, from {images[0].shape[:2]} to {images[-1].shape[:2]} pixels")
    return np.stack(images)[inverse]
