"""`samples.pickle`: a few frame pairs for figures, as plain numpy arrays, read without running anything.

A dict: `video` uint8 [S, 2, 3, H, W] in RGB, `time` float64 [S, 2] in seconds, `name` a list of S strings.
"""

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import InputError
from common.files import load_arrays, write_atomically


def save_samples(path: str | Path, video: np.ndarray, time: np.ndarray, name: list[str]) -> None:
    """Write pairs [S, 2, 3, H, W] (uint8), their times [S, 2] in seconds and their names."""
    if Path(path).exists():
        raise InputError(f"{path} exists already and is not overwritten; name another file or move it away")
    samples = {"video": np.ascontiguousarray(video), "time": np.asarray(time, dtype=np.float64), "name": list(name)}
    write_atomically(path, lambda file: file.write(pickle.dumps(_checked(samples, path), protocol=4)))


def load_samples(path: str | Path) -> dict[str, Any]:
    """Read what `save_samples` wrote; an InputError if the file is missing, damaged, or holds more than arrays."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there are no samples at {path}; make some with: siammae samples --out {path}")
    try:
        samples = load_arrays(io.BytesIO(path.read_bytes()))
    except Exception as error:  # a damaged pickle may raise nearly anything
        raise InputError(f"{path} is refused: {error}; only numpy arrays are read from it") from None
    return _checked(samples, path)


def pairs_for(sample_shape: tuple[int, int, int, int], source: str | Path | dict[str, Any]) -> list[dict[str, Any]]:
    """The pairs of a file, or what `load_samples` read, as samples [2, 3, H, W] of a model's size: `video`, `time`,
    `name`, and their number as `seed`. An InputError if the model does not take pairs."""
    import torch
    from torch.nn.functional import interpolate

    if sample_shape[0] != 2:
        raise InputError("samples are pairs, and this is a model of clips: name videos with --data instead")
    samples = source if isinstance(source, dict) else load_samples(source)
    video, size = torch.from_numpy(samples["video"]), sample_shape[2:]
    if video.shape[-2:] != size:
        small = interpolate(video.flatten(0, 1).float(), size, mode="bicubic", antialias=True)
        video = small.round().clamp(0, 255).byte().unflatten(0, video.shape[:2])
    names = zip(video, samples["time"], samples["name"], strict=True)
    return [dict(video=pair, time=time, name=name, seed=k) for k, (pair, time, name) in enumerate(names)]


def _checked(samples: Any, path: str | Path) -> dict[str, Any]:
    video = samples.get("video") if isinstance(samples, dict) else None
    if not isinstance(video, np.ndarray) or video.dtype != np.uint8 or video.shape[1:3] != (2, 3) or video.ndim != 5:
        raise InputError(f"{path} has no pairs: expected `video`, uint8 of shape [S, 2, 3, H, W]")
    count = len(video)
    if np.shape(samples.get("time")) != (count, 2) or len(samples.get("name", ())) != count:
        raise InputError(f"{path} has {count} pairs, but `time` or `name` are not as many")
    return samples
