"""siammae eval davis|vip|jhmdb|camvid|joints|folder --data DATA [--source NAME] [--protocol dino] …"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
import tyro

from cli.feature_sources import open_source
from common.errors import InputError
from evaluation import datasets
from evaluation.benchmarks import CAMVID, JOINTS, OBJECTS, UNSCORED, VIP, Benchmark
from evaluation.protocols import BENCHMARKS, Protocol, protocol
from evaluation.run import evaluate
from ml.utils import best_device

Name = Literal["davis", "vip", "jhmdb", "camvid", "joints", "folder"]
COUNTED: dict[str, Benchmark] = dict(
    davis=OBJECTS, vip=VIP, jhmdb=JOINTS, camvid=CAMVID, joints=JOINTS, folder=UNSCORED
)
Named = Literal["paper", "rsp", "dino"]


@dataclass
class Arguments:
    """Follow the labels of a benchmark with a source of features; print the papers' table, and keep it in a folder.

    Flags that a protocol has override it; the numbers then say so. A repeated call goes on with the next video.
    """

    benchmark: Annotated[Name, tyro.conf.Positional]
    """what to follow; folder: pictures or a video of your own, of which nothing is scored"""
    data: Path
    """the data set's folder, in its official layout; joints: the JSON file; folder: pictures or a video file; nothing
    is written there"""
    out: Path
    """folder of the results, new or of the same run: JSON, CSV, and pictures"""
    source: str = "micro/20043"
    """a run, <run>/<epoch>, a checkpoint's file, untrained:CHECKPOINT, pixels, random, mae:PATH,
    mae_st:PATH, one_tubelet:MAE-ST, timm:NAME, timm:NAME@FILE, or a control: copy, oracle, oracle:SOURCE (oracle
    alone: the features of pixels)"""
    protocol: Named = "paper"
    """where the defaults of the flags below come from"""
    year: Literal[2016, 2017] = 2017
    """of DAVIS"""
    split: str = "val"
    """which list of videos; JHMDB: 1, 2 or 3 (val means 1)"""
    pictures: Path | None = None
    """joints: the folder with a folder of pictures for each video of the JSON file"""
    mask: Path | None = None
    """folder: the mask of the first picture, a palette PNG or a grey one"""
    sequences: tuple[str, ...] = ()
    """only these videos"""
    frames: int | None = None
    """only the first so many frames of each video"""
    export: Path | None = None
    """folder, new or of the same run, for the results as indexed PNGs, which the official tool reads (joints: JSON)"""
    videos: bool = False
    """write a strip and an mp4 of each video, and index.html over all of them, worst first"""
    batch: int = 1
    """frames to encode at once; it never changes the protocol"""
    root: Path = Path()
    """folder that holds checkpoints/"""
    device: str | None = None
    """cuda, mps, cpu; default: the best there is"""
    half: bool = False
    """16 bits on a GPU"""
    rules: Annotated[Protocol, tyro.conf.arg(name="")] = field(default_factory=lambda: named("paper", "davis"))


def arguments(argv: list[str]) -> Callable[..., None]:
    """The function to call, with the defaults of the protocol and the benchmark that the arguments name."""
    words = [word for given in argv for word in given.split("=", 1)]
    after = dict(pairwise(words))
    benchmark = next((word for word in words if word in get_args(Name)), "davis")
    chosen = after.get("--protocol", Arguments.protocol)
    base = named(chosen if chosen in get_args(Named) else Arguments.protocol, benchmark)
    default = Arguments(benchmark=tyro.MISSING, data=tyro.MISSING, out=tyro.MISSING, rules=base)

    def main(arguments: Annotated[Arguments, tyro.conf.arg(name="")] = default) -> None:
        if arguments.benchmark != benchmark:  # a folder bears the name of another one
            raise InputError(f"name the benchmark first: siammae eval {arguments.benchmark} --data …")
        run(arguments)

    main.__doc__ = Arguments.__doc__
    return main


def named(name: str, benchmark: str) -> Protocol:
    """The protocol on a benchmark: joints as on JHMDB, the rest as on DAVIS."""
    like = "jhmdb" if benchmark == "joints" else benchmark if benchmark in BENCHMARKS else "davis"
    return protocol(name, like)


def run(arguments: Arguments) -> None:
    device = str(best_device(arguments.device))
    rules = named(arguments.protocol, arguments.benchmark).with_(**asdict(arguments.rules))
    videos = list(read(arguments))
    source = open_source(arguments.source, arguments.root, device, arguments.half)
    evaluate(
        videos,
        source,
        rules,
        arguments.out,
        benchmark=COUNTED[arguments.benchmark],
        frames=arguments.frames,
        batch=arguments.batch,
        export=arguments.export,
        write_video=write_mp4 if arguments.videos else None,
        settings=dict(device=device.partition(":")[0], half=arguments.half),
        report=lambda line: print(line, flush=True),
    )


def read(arguments: Arguments) -> Iterator[datasets.Video[Any]]:
    """The videos of the benchmark that were asked for."""
    data, split, names = arguments.data, arguments.split, arguments.sequences
    match arguments.benchmark:
        case "davis":
            return datasets.davis(data, arguments.year, split, names=names)
        case "vip":
            return datasets.vip(data, split, names)
        case "jhmdb":
            if split not in ("val", "1", "2", "3"):
                raise InputError(f"JHMDB has the splits 1, 2 and 3; --split is {split!r}")
            return datasets.jhmdb(data, 1 if split == "val" else int(split), names)
        case "camvid":
            return datasets.dense_labels(data, names)
        case "joints":
            if arguments.pictures is None:
                raise InputError("joints need --pictures as well: the folder with a folder of pictures for each video")
            return datasets.keypoints(data, arguments.pictures, names)
        case "folder":
            if arguments.mask is None:
                raise InputError("folder needs --mask as well: the mask of the first picture")
            own = recording(data, arguments.mask) if data.is_file() else datasets.folder(data, arguments.mask)
            datasets.select([own.name], names)
            return iter([own])


def recording(file: Path, mask: Path) -> datasets.Video[Any]:
    """A video file, decoded frame by frame whenever it is gone through."""
    from dataset_loader.decoding import DecodeError, Video

    with Video(file) as clip:
        count = len(clip.index.times)

    def decode(numbers: Sequence[int]) -> Iterator[np.ndarray]:
        with Video(file) as clip:
            for number, (image, _) in enumerate(clip.each_frame()):
                if number in numbers:
                    yield image
                if number == numbers[-1]:
                    return
        raise DecodeError(file, f"gives fewer frames than the {count} that it states: get it again, or re-encode it")

    return datasets.recording(file, count, decode, mask)


def write_mp4(path: Path, frames: Iterable[np.ndarray], rate: float) -> None:
    """The decoder is only loaded where videos are wanted."""
    from dataset_loader.preparing.encoding import write_video

    write_video(path, frames, rate)
