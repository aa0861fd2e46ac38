"""Which data sets can be brought here: Kinetics-400, DAVIS 2017, and whatever a list of URLs names."""

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from common.download import download
from common.errors import InputError
from dataset_loader.preparing.archives import folder_name
from dataset_loader.preparing.fetching import Item, fetch

KINETICS = "https://s3.amazonaws.com/kinetics/400"
DAVIS = "https://data.vision.ee.ethz.ch/csergi/share/davis"
# 240,258 videos in 242 train parts, 19,881 in 20 of val, 38,685 in 39 of test, about 1.5 GB each
# (https://github.com/cvdfoundation/kinetics-dataset, arrange_by_classes.py and the lists that its README names)
VIDEOS_PER_PART = 993
Split = Literal["train", "val", "test"]


def download_kinetics(
    out: str | Path,
    videos: int | Literal["all"],
    splits: Sequence[Split] = ("train", "val"),
    base_url: str = KINETICS,
    **options: Any,
) -> None:
    """Bring about `videos` videos of Kinetics-400 to `out/<split>/part_<k>/`, and `out/annotations/<split>.csv`.

    Whole parts of about 993 videos are fetched, at least one of each split, spread evenly over all that the server
    lists; those for a smaller number are always among those for a larger one. `options` are those of `fetch`.
    """
    if videos != "all" and videos < 1:
        raise InputError(f"{videos} videos were asked for; it must be at least 1, or all")
    if not splits:
        raise InputError("no split was named; there are train, val and test")
    out, base_url = Path(out), base_url.rstrip("/")
    parts = {}
    for split in dict.fromkeys(splits):
        listing = out / "annotations" / f"k400_{split}_path.txt"
        download(f"{base_url}/{split}/{listing.name}", listing, check=_part_names, progress=False, say=print)
        parts[split] = _part_names(listing)
    items = [Item(f"{base_url}/annotations/{split}.csv", out / "annotations" / f"{split}.csv") for split in parts]
    share = 1.0 if videos == "all" else videos / VIDEOS_PER_PART / sum(map(len, parts.values()))
    for split, names in parts.items():
        chosen = [names[k] for k in spread(len(names), max(1, round(share * len(names))))]
        print(f"{split}: {len(chosen)} of {len(names)} parts, about {len(chosen) * VIDEOS_PER_PART:,} videos")
        for name in chosen:
            source = f"{KINETICS}/{split}/{name}"
            items.append(Item(f"{base_url}/{split}/{name}", out / split / folder_name(name), name, source))
    fetch(items, **options)


def download_davis(out: str | Path, base_url: str = DAVIS, **options: Any) -> None:
    """Bring DAVIS 2017 (train and val, 480p) to `out/DAVIS/`; `options` are those of `fetch`."""
    name = "DAVIS-2017-trainval-480p.zip"
    fetch([Item(f"{base_url.rstrip('/')}/{name}", Path(out) / "DAVIS", name, f"{DAVIS}/{name}")], **options)


def download_list(file: str | Path, out: str | Path, **options: Any) -> None:
    """Bring what the URLs in a text file name to `out`: archives become folders, everything else files.

    A line is a URL and, if it shall not keep its name, a blank and another name; `#` begins a comment. Two lines that
    would become the same are refused. `options` are those of `fetch`.
    """
    try:
        lines = Path(file).read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read as a list of URLs: {error}") from error
    taken: dict[Path, tuple[int, Item]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        item = _listed(line, Path(out), f"{file}, line {number}")
        first, other = taken.setdefault(item.target, (number, item))
        if other != item:
            raise InputError(
                f"{file}: lines {first} and {number} would both become {item.target}; "
                "add another name after the URL of one of them"
            )
    if not taken:
        raise InputError(f"{file} names no URL")
    fetch([item for _, item in taken.values()], **options)


def spread(count: int, wanted: int) -> list[int]:
    """`wanted` of the numbers below `count`, evenly spread (van der Corput's sequence); a larger `wanted` only adds.

    `spread(20, 4)` is 0, 5, 10, 15, and `spread(20, 5)` is 0, 2, 5, 10, 15.
    """
    bits = (count - 1).bit_length()
    reversed_bits = (int(f"{k:0{bits}b}"[::-1], 2) for k in range(1 << bits))
    order = dict.fromkeys(k * count >> bits for k in reversed_bits)
    return sorted(list(order)[:wanted])


def _part_names(listing: Path) -> list[str]:
    """The names of the archives in the server's list of their URLs, in its order."""
    names = [PurePosixPath(urlsplit(line).path).name for line in listing.read_text(errors="replace").split()]
    if not names or not all(re.fullmatch(r"\w[\w.-]*", name) and folder_name(name) for name in names):
        raise InputError(f"{listing} is not a list of the URLs of archives")
    return names


def _listed(line: str, out: Path, place: str) -> Item:
    """The item that one line of a list stands for; `place` names the line in what is said of it."""
    address, _, given = line.strip().partition(" ")
    url = urlsplit(address)
    if url.scheme not in ("http", "https") or not url.netloc:
        raise InputError(f"{place}: {address!r} is no http or https URL")
    name = given.strip() or PurePosixPath(unquote(url.path)).name
    if not name or name[0] in ". " or not name.isprintable() or set(name) & {"/", "\\"}:
        raise InputError(f"{place}: {name!r} cannot be the name of a file; add a good one after the URL")
    folder = folder_name(name)
    source = url._replace(query="", fragment="").geturl()  # a query may hold a secret, and changes
    return Item(address, out / (folder or name), name, source) if folder else Item(address, out / name)
