"""Textured shapes that move and occlude one another on a panning photograph, with the exact truth beside every pixel.

The scene is a function of continuous time in seconds: frame rate, length and explicit times only choose when to look,
and the size only how finely. Tests and evaluations stand on it: object identities as in DAVIS, parts as in VIP, joints
as in JHMDB, and the motion of every point. Nothing is written here; `preparing/encoding.py` writes videos.

How it is exact: every layer (the photograph, then the objects from far to near) is a plane with a pose, and a point of
the plane is seen at `position + turn * point`, in complex numbers (x + iy; `turn` holds rotation and scale). Masks,
parts, visibility and motion are these formulas at pixel centres; only the colours at a shape's edge are anti-aliased.

Lengths are in units of the frame's short side. F frames, L layers, M = L - 1 objects, K keypoints of an object,
H W pixels, h w texels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from PIL import Image

from common.errors import InputError

Rng = np.random.Generator


@dataclass(frozen=True, eq=False)
class SyntheticVideo:
    """A video and its truth. Coordinates are (x, y) in pixels, pixel centres at integers: the image reaches from -0.5
    to W - 0.5 and H - 0.5."""

    frames: np.ndarray  # uint8 [F, 3, H, W], RGB
    times: np.ndarray  # float64 [F], seconds
    masks: np.ndarray  # uint8 [F, H, W]: what is seen at the pixel's centre: 0 background, 1 (farthest) … M (nearest)
    parts: np.ndarray  # uint8 [F, H, W]: 0 background, k + 1 the part of an object around its keypoint k
    keypoints: np.ndarray  # float64 [F, M, K, 2], also where out of sight
    visible: np.ndarray  # bool [F, M, K]: inside the image, and no nearer object covers the point
    motion: np.ndarray  # float32 [F - 1, H, W, 2]: how far the point seen in frame f goes until frame f + 1
    occluded: np.ndarray  # bool [F - 1, H, W]: in frame f + 1 that point is covered or outside the image


def synthetic_video(
    seed: int,
    *,
    height: int = 240,
    width: int = 320,
    seconds: float = 2.0,
    fps: float = 30.0,
    objects: int = 3,
    keypoints: int = 4,
    times: Sequence[float] | np.ndarray | None = None,
) -> SyntheticVideo:
    """Look at the scene of `seed` at `seconds * fps` regular times from 0, or at explicit `times` (in any order).

    All times and all sizes of one aspect ratio show the same scene. At time 0 the middle of every object is in sight.
    Two explicit times give the motion and the occlusions across any gap. From one seed every machine makes the same
    whole numbers; floats agree to rounding. Raises InputError.
    """
    when = _times(seconds, fps, times)
    layers = make_scene(seed, height=height, width=width, objects=objects, keypoints=keypoints)
    poses = np.stack([layer.path(when) for layer in layers], axis=1)  # [F, L, 2]
    unit = min(height, width)
    extent = (width + 1j * height) / unit
    pixels = (np.arange(width) + 0.5 + 1j * (np.arange(height)[:, None] + 0.5)) / unit  # [H, W]

    drawn = [_draw(layers, pose, pixels, unit) for pose in poses]
    frames, masks, parts = (np.stack(arrays) for arrays in zip(*drawn, strict=True))

    owner = np.repeat(np.arange(1, objects + 1)[:, None], keypoints, axis=1)  # [M, K]
    joints = _on_screen(poses[:, owner], np.array([layer.keypoints for layer in layers[1:]]).reshape(owner.shape))
    visible = np.stack([_in_sight(layers, *now, owner, extent) for now in zip(poses, joints, strict=True)])

    motion = np.empty((len(when) - 1, height, width, 2), np.float32)
    occluded = np.empty((len(when) - 1, height, width), bool)
    for f, label in enumerate(masks[:-1]):
        after = _on_screen(poses[f + 1, label], _on_plane(poses[f, label], pixels))
        motion[f] = _coordinates((after - pixels) * unit)
        occluded[f] = ~_in_sight(layers, poses[f + 1], after, label, extent)
    return SyntheticVideo(frames, when, masks, parts, _coordinates(joints * unit) - 0.5, visible, motion, occluded)


# ---- The scene


@dataclass(frozen=True, eq=False)
class Path:
    """A smooth, bounded way through x, y, angle and log of the scale: for each a middle and two sines of time."""

    middle: np.ndarray  # [4]
    swing: np.ndarray  # [4, 2]
    hertz: np.ndarray  # [4, 2]
    phase: np.ndarray  # [4, 2], in turns

    def __call__(self, times: np.ndarray) -> np.ndarray:
        """times [F], seconds → poses [F, 2]: position and turn, complex."""
        sines = np.sin(2 * np.pi * (self.hertz * times[:, None, None] + self.phase))
        x, y, angle, log_scale = (self.middle + (self.swing * sines).sum(-1)).T
        return np.stack([x + 1j * y, np.exp(log_scale + 1j * angle)], axis=1)


@dataclass(frozen=True, eq=False)
class Layer:
    """A textured shape around 0 of its plane: a star, a polygon (a star whose inner corners lie on the straight lines
    between its tips) or, without tips, an ellipse. The photograph is an ellipse of infinite radius."""

    path: Path
    texture: np.ndarray  # int32 [3, h, w], RGB from 0 to 255
    reach: complex  # the texture covers x from -reach.real to reach.real, and y likewise
    radius: float
    keypoints: np.ndarray  # complex [K]
    stretch: float = 1.0  # of the y axis
    tips: int = 0
    inner: float = 1.0  # distance of the inner corners from 0, over the radius

    @property
    def lean(self) -> float:
        """How far an edge comes inwards from its tip, over its way along: 0 for polygons and ellipses."""
        return (np.cos(np.pi / self.tips) - self.inner) / np.sin(np.pi / self.tips) if self.tips else 0.0

    def level(self, points: np.ndarray) -> np.ndarray:
        """How far out points of the plane lie: 0 at the middle, 1 at the edge, in proportion along every ray."""
        round_points = (points.real + 1j * points.imag / self.stretch) / self.radius
        if not self.tips:
            return np.abs(round_points)
        half = np.pi / self.tips  # every point is folded into the wedge between an inner corner (0) and a tip (half)
        fold = np.abs(np.angle(round_points) % (2 * half) - half)
        return np.abs(round_points) * (np.cos(fold) - self.lean * np.sin(fold)) / self.inner

    def colour(self, points: np.ndarray) -> np.ndarray:
        """points [...] of the plane → RGB int32 [3, ...], bilinear, the border repeated."""
        _, h, w = self.texture.shape
        # in whole 1/256 texels, for integers give the same bytes on every machine
        x = np.clip(((points.real / self.reach.real + 1) * w - 1) * 128 + 0.5, 0, 256 * w - 257).astype(np.int32)
        y = np.clip(((points.imag / self.reach.imag + 1) * h - 1) * 128 + 0.5, 0, 256 * h - 257).astype(np.int32)
        texels, corner = self.texture.reshape(3, -1), (y >> 8) * w + (x >> 8)
        x, y = x & 255, y & 255
        above = texels.take(corner, 1) * (256 - x) + texels.take(corner + 1, 1) * x
        below = texels.take(corner + w, 1) * (256 - x) + texels.take(corner + w + 1, 1) * x
        return (above * (256 - y) + below * y + (1 << 15)) >> 16


def make_scene(seed: int, *, height: int, width: int, objects: int, keypoints: int) -> list[Layer]:
    """The layers of a scene from far to near: the photograph, then `objects` shapes, the larger ones farther away."""
    for name, value, least, most in (
        ("seed", seed, 0, 2**63),
        ("height", height, 1, 2**14),
        ("width", width, 1, 2**14),
        ("objects", objects, 0, 255),
        ("keypoints", keypoints, 1, 255),
    ):
        if not (least <= value <= most and value == int(value)):
            raise InputError(f"A synthetic video needs a whole number from {least} to {most} as {name}, not {value}.")
    rng = np.random.default_rng(seed)
    unit = min(height, width)
    extent = (width + 1j * height) / unit
    background = _background(rng, extent, unit)
    near: list[Layer] = []
    for radius in np.sort(rng.uniform(0.16, 0.32, objects)) * min(1, np.sqrt(4 / max(objects, 1))):
        near.insert(0, _object(rng, extent, unit, radius, keypoints, near))
    return [background, *near]


def _background(rng: Rng, extent: complex, unit: int) -> Layer:
    """A photograph, 1.5 to 1.9 times as large as the frame needs, which pans and zooms and never shows its border."""
    photograph = _photographs()[rng.integers(2)]
    if rng.random() < 0.5:
        photograph = photograph.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    scale = rng.uniform(1.5, 1.9) * max(extent.real / photograph.width, extent.imag / photograph.height)
    reach = scale * (photograph.width + 1j * photograph.height) / 2
    zoom = 0.07
    room = reach * np.exp(-zoom) - extent / 2
    path = _path(rng, extent / 2 - room, extent / 2 + room, angle=(0.0, 0.0), zoom=zoom)
    size = max(2, round(2 * reach.real * unit)), max(2, round(2 * reach.imag * unit))
    texture = np.asarray(photograph.resize(size, Image.Resampling.BICUBIC), np.int32)
    return Layer(path, texture.transpose(2, 0, 1).copy(), reach, np.inf, np.zeros(0))


def _object(rng: Rng, extent: complex, unit: int, radius: float, keypoints: int, near: list[Layer]) -> Layer:
    """A shape, its keypoints, its texture, and a path that keeps its middle in the frame and, at time 0, uncovered."""
    tips = int(rng.choice([0, 3, 4, 5, 6, 7], p=[0.25, 0.1, 0.15, 0.2, 0.2, 0.1]))
    straight = np.cos(np.pi / tips) if tips else 1.0
    inner = straight * (rng.uniform(0.5, 0.7) if tips >= 5 and rng.random() < 0.7 else 1.0)
    margin = 0.4 * radius * (1 + 1j)
    heading = rng.uniform(-np.pi, np.pi)
    start = np.zeros(1)
    while True:
        path = _path(rng, margin, extent - margin, angle=(heading - 1.2, heading + 1.2), zoom=0.18)
        middle = path(start)[:, 0]
        if all(other.level(_on_plane(other.path(start), middle)) > 1.2 for other in near):
            break
    blank = np.zeros((3, 2, 2), np.int32)
    shape = Layer(path, blank, radius * (1 + 1j), radius, np.zeros(0), rng.uniform(0.6, 1), tips, inner)
    rays = np.exp(2j * np.pi * (np.arange(keypoints) + rng.uniform(-0.25, 0.25, keypoints)) / keypoints)
    joints = rays / shape.level(rays) * rng.uniform(0.5, 0.8, keypoints)
    return replace(shape, keypoints=joints, texture=_texture(rng, radius, unit, joints))


def _path(rng: Rng, low: complex, high: complex, angle: tuple[float, float], zoom: float) -> Path:
    """A path inside these bounds (`zoom`: of the log of the scale): four fifths slow and wide, one fifth a quiver."""
    lowest = np.array([low.real, low.imag, angle[0], -zoom])
    room = (np.array([high.real, high.imag, angle[1], zoom]) - lowest) / 2
    used = rng.uniform(0.6, 1, 4)
    middle = lowest + room + rng.uniform(-1, 1, 4) * (1 - used) * room
    hertz = np.stack([rng.uniform(0.12, 0.4, 4), rng.uniform(0.5, 0.9, 4)], axis=1)
    return Path(middle, (used * room)[:, None] * [0.8, 0.2], hertz, rng.uniform(0, 1, (4, 2)))


def _texture(rng: Rng, radius: float, unit: int, joints: np.ndarray) -> np.ndarray:
    """The busiest of eight regions of a photograph, or a grating, in a colour for each part → int32 [3, h, w]."""
    photograph = _photographs()[rng.integers(2)]
    half = rng.uniform(30, 80)

    def crop(size: int, centre: np.ndarray) -> np.ndarray:
        box = (*centre - half, *centre + half)
        return np.asarray(photograph.resize((size, size), Image.Resampling.BICUBIC, box), np.float64)

    centres = rng.uniform(half, np.array(photograph.size) - half, (8, 2))
    samples = [crop(48, centre) for centre in centres]  # the choice does not depend on the frame's size
    busiest = int(np.argmax([np.abs(np.diff(sample, axis=1)).mean() for sample in samples]))
    size = max(2, round(2 * radius * unit))
    detail = (crop(size, centres[busiest]) - samples[busiest].mean()) / samples[busiest].std()
    texels = np.linspace(-1, 1, 2 * size + 1)[1::2]
    plane = texels + 1j * texels[:, None]
    if rng.random() < 0.35:
        wave = np.sin(rng.uniform(10, 22) * (plane * np.exp(1j * rng.uniform(0, np.pi))).real)
        detail = 0.4 * detail + wave[:, :, None]
    colours = rng.uniform(80, 180, 3) + rng.uniform(-45, 45, (len(joints), 3))
    texture = 45 * detail[:, :, rng.permutation(3)] + colours[_part(radius * plane, joints)]
    return np.clip(texture, 0, 255).astype(np.int32).transpose(2, 0, 1).copy()


@cache
def _photographs() -> list[Image.Image]:
    """scikit-learn's two photographs, a temple and a flower, 640 x 427."""
    try:
        from sklearn.datasets import load_sample_images
    except ImportError:
        raise InputError("Synthetic videos are made of scikit-learn's photographs: pip install scikit-learn.") from None
    return [Image.fromarray(photograph) for photograph in load_sample_images().images]


# ---- Looking at it


def _times(seconds: float, fps: float, times: Sequence[float] | np.ndarray | None) -> np.ndarray:
    if times is None:
        if not (0 < fps < np.inf and 0 <= seconds < np.inf):
            raise InputError(f"A synthetic video needs an fps above 0 and seconds from 0, not {fps} and {seconds}.")
        return np.arange(max(1, round(seconds * fps))) / fps
    when = np.array(times, np.float64)
    if when.ndim != 1 or not len(when) or not np.isfinite(when).all():
        raise InputError(f"The times of a synthetic video must be one or more finite numbers of seconds, not {times}.")
    return when


def _on_screen(pose: np.ndarray, points: np.ndarray) -> np.ndarray:
    return pose[..., 0] + pose[..., 1] * points


def _on_plane(pose: np.ndarray, points: np.ndarray) -> np.ndarray:
    return (points - pose[..., 0]) / pose[..., 1]


def _coordinates(points: np.ndarray) -> np.ndarray:
    return np.stack([points.real, points.imag], axis=-1)


def _part(points: np.ndarray, joints: np.ndarray) -> np.ndarray:
    """The nearest of an object's keypoints, from 0."""
    return np.abs(points[..., None] - joints).argmin(-1)


def _in_sight(
    layers: list[Layer], pose: np.ndarray, points: np.ndarray, owner: np.ndarray, extent: complex
) -> np.ndarray:
    """Whether `points` [...] of the screen are in the image and under no layer nearer than their `owner` [...]."""
    seen = (points.real >= 0) & (points.real < extent.real) & (points.imag >= 0) & (points.imag < extent.imag)
    for label, layer in enumerate(layers):
        below = seen & (owner < label) & (np.abs(points - pose[label, 0]) <= layer.radius * np.abs(pose[label, 1]))
        seen[below] = layer.level(_on_plane(pose[label], points[below])) > 1
    return seen


def _draw(
    layers: list[Layer], pose: np.ndarray, pixels: np.ndarray, unit: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """pose [L, 2], pixel centres [H, W] → frame uint8 [3, H, W], masks, parts uint8 [H, W]; the far is drawn first."""
    height, width = pixels.shape
    frame = np.zeros((3, height, width), np.int32)
    masks, parts = np.zeros((2, height, width), np.uint8)
    for label, layer in enumerate(layers):
        centre, radius = pose[label, 0] * unit, layer.radius * np.abs(pose[label, 1]) * unit
        top, bottom = np.clip([centre.imag - radius - 1, centre.imag + radius + 2], 0, height).astype(int)
        left, right = np.clip([centre.real - radius - 1, centre.real + radius + 2], 0, width).astype(int)
        box = np.s_[top:bottom, left:right]
        points = _on_plane(pose[label], pixels[box])
        level = layer.level(points)
        opacity = np.full(level.shape, 256, np.int32)  # of 256; integers as in `Layer.colour`
        if label:
            masks[box][level <= 1] = label
            parts[box][level <= 1] = 1 + _part(points[level <= 1], layer.keypoints)
            to_edge = radius * layer.inner / np.hypot(1, layer.lean) * np.sqrt(layer.stretch)  # pixels from the middle
            opacity = np.clip((1 - level) * to_edge * 256 + 128.5, 0, 256).astype(np.int32)
        frame[:, *box] += ((layer.colour(points) - frame[:, *box]) * opacity + 128) >> 8
    return frame.astype(np.uint8), masks, parts
