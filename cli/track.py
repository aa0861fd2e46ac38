"""siammae track VIDEO --mask FIRST.png | --points x,y,label … [--source NAME]"""

from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from cli.flags import Features
from common.errors import InputError
from evaluation.protocols import Protocol, protocol

LAPTOP = protocol("dino", size="short240")  # a quarter of the arithmetic of its published size


def main(
    video: Annotated[Path, tyro.conf.Positional],
    mask: Path | None = None,
    points: tuple[str, ...] = (),
    threshold: int | None = None,
    out: Path | None = None,
    features: Annotated[Features, tyro.conf.arg(name="")] = Features(),  # noqa: B008
    rules: Annotated[Protocol, tyro.conf.arg(name="")] = LAPTOP,
) -> None:
    """Follow objects that are marked in the first frame through a video; write an overlay video and the masks.

    The protocol is dino's with frames of 240 pixels on the short side, which a laptop can do; every field is a flag.

    Args:
        video: any file that FFmpeg reads
        mask: the first frame's mask, a palette PNG or a grey one, whose pixels are the objects' numbers
        points: marks x,y,label in the first frame instead: disks of a twentieth of its short side
        threshold: what is at least as bright in the mask (0 to 255) is the one object: for JPEGs and soft edges
        out: folder for overlay.mp4 and masks/; default: <video's name>_tracked, here
        rules: the protocol
    """
    from tqdm import tqdm

    from dataset_loader.decoding import Video
    from dataset_loader.preparing.encoding import write_video
    from dataset_loader.times import ascending, usual_spacing
    from evaluation.pictures import even, overlay, save_mask, square
    from evaluation.results import digest
    from evaluation.track import points_to_mask, track
    from evaluation.videos import read_mask

    if (mask is None) == (not points):
        raise InputError("mark what to follow: give either --mask FIRST.png or --points x,y,label …")
    out = out or Path(f"{video.stem}_tracked")
    with Video(video) as clip, ExitStack() as ending:  # who reads ahead stops before the file is closed
        count = len(clip.index.times)
        if count < 2:
            raise InputError(f"{video} has {count} frame; following needs at least 2")
        frame, _ = next(iter(clip.each_frame()))
        aspect = clip.pixel_aspect()
        first = read_mask(mask, threshold) if mask else points_to_mask(points, (frame.shape[0], frame.shape[1]))
        source = features.open_source()
        times: deque[float] = deque()

        def frames() -> Iterator[np.ndarray]:
            for image, time in clip.each_frame():
                times.append(time)
                yield image

        pairs = ending.enter_context(closing(track(frames(), first, source, rules, batch=features.at_once)))
        opening = next(pairs)  # what is wrong with the mask is said before anything is written
        about = dict(
            video=str(video), bytes=video.stat().st_size, first=digest(first), source=source.name,
            weights=source.weights, half=features.half, protocol=asdict(rules),
        )  # fmt: skip
        _claim(out, about)
        print(f"{video}, {count} frames of {frame.shape[1]}×{frame.shape[0]}; {source.name}; {rules}")

        def drawn() -> Iterator[np.ndarray]:
            everything = chain([opening], pairs)
            bar = tqdm(everything, total=count, unit="frame", desc=video.name, mininterval=0.5, dynamic_ncols=True)
            for number, (image, found) in enumerate(bar):
                save_mask(out / "masks" / f"{number:05d}.png", found)
                yield even(square(overlay(image, found), aspect))

        def stamps() -> Iterator[float]:
            start = times[0]
            while times:  # the frames that were read ahead
                yield times.popleft() - start

        on = ascending(stamps(), usual_spacing(clip.index.times) or 0.04)  # the clock may start anew, the film goes on
        write_video(out / "overlay.mp4", drawn(), on)
    print(f"{out / 'overlay.mp4'} and {out / 'masks'}/")


def _claim(out: Path, about: dict) -> None:
    """Make the folder ours; one of somebody else's, of another run, or of a finished one is not written into."""
    from common.files import write_json
    from evaluation.results import refuse_others

    if (out / "overlay.mp4").exists():
        raise InputError(f"{out} exists already and is not overwritten; name another folder with --out")
    refuse_others(out, out / "track.json", about)
    write_json(out / "track.json", about)
