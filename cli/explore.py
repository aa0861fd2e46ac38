"""siammae explore VIDEO | FOLDER [--source NAME] [--out EXPLORE.html]"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from cli.flags import Features
from evaluation.protocols import Protocol, protocol

if TYPE_CHECKING:
    import numpy as np

LAPTOP = protocol("dino", size="short240")  # as `siammae track`


def main(
    video: Annotated[Path, tyro.conf.Positional],
    out: Path = Path("explore.html"),
    frames: int = 24,
    every: int = 0,
    start: int = 0,
    features: Annotated[Features, tyro.conf.arg(name="")] = Features("siammae_micro"),  # noqa: B008
    rules: Annotated[Protocol, tyro.conf.arg(name="")] = LAPTOP,
) -> None:
    """Write one page to look into a model: what a patch is like in all frames, and how a painted mask travels.

    The page is one file that opens from the disk without a network, on a phone as well. A SiamMAE's checkpoint also
    predicts frames there, at several mask ratios and from single visible patches.

    Args:
        video: any file that FFmpeg reads, or a folder of pictures
        out: the page
        frames: how many, at most
        every: take each so-manieth frame; 0: spread evenly to the end
        start: the first one's number, from 0
        rules: the protocol
    """
    from common.errors import InputError
    from dataset_loader.decoding import Video
    from evaluation.explore import encode, pack, write_explorer
    from evaluation.videos import pictures_in, read_frame

    if out.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"{out} is not the name of a page; expected one that ends in .html")
    if frames < 2 or every < 0 or start < 0:
        raise InputError(f"frames is {frames}, every {every} and start {start}; expected at least 2, 0 and 0")
    if video.is_dir():
        paths = pictures_in(video)
        numbers = _chosen(len(paths), frames, every, start, video)
        pictures, names = [read_frame(paths[k]) for k in numbers], [f"frame {k}" for k in numbers]
    else:
        with Video(video) as clip:
            numbers = _chosen(len(clip.index.times), frames, every, start, video)
            array, stamps = clip.frames(numbers)
            pictures, names = list(array), [f"{time:.2f} s" for time in stamps - clip.index.times[0]]
    source = features.open_source()
    kept, found, size = encode(pictures, source, rules, batch=features.at_once)
    packed = pack(found)
    print(f"{len(kept)} frames of {packed.grid[0]}×{packed.grid[1]} patches; {packed}")
    written = write_explorer(
        out, kept, names, packed, size, rules, title=video.stem or str(video), source=source.name,
        predictions=_predictions(features.source, features.root, kept, names),
    )  # fmt: skip
    print(f"{out}: {written / 2**20:.1f} MB")


def _chosen(count: int, frames: int, every: int, start: int, video: Path) -> list[int]:
    """The numbers of the frames to take."""
    import numpy as np

    from common.errors import InputError

    if every:
        numbers = list(range(start, count, every))[:frames]
    else:
        numbers = np.unique(np.linspace(start, count - 1, frames).round().astype(int)).tolist() if start < count else []
    if len(numbers) < 2:
        raise InputError(f"{video} has {count} frames; from number {start} on there are fewer than 2 to look at")
    return numbers


def _predictions(source: str, root: Path, frames: "list[np.ndarray]", names: list[str]) -> dict[str, Any] | None:
    """What a SiamMAE's checkpoint makes of three pairs, of short, middle and long gaps; None for other sources."""
    from common.errors import InputError
    from ml.checkpoints import find_checkpoint, load_model
    from ml.explore_pairs import predict_pairs

    try:
        model, _ = load_model(find_checkpoint(source, root))
    except InputError:
        return None
    if not model.of_pairs or model.sample_shape[0] > 2:
        return None
    last = len(frames) - 1
    pairs = dict.fromkeys(
        [(0, min(last, 1)), (last // 3, min(last, last // 3 + 3)), (last // 4, min(last, last // 4 + 8))]
    )
    return predict_pairs(model, frames, names, list(pairs))
