"""Training and test: which video is for which, and that no video and no content is on both sides."""

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from common.errors import InputError
from common.files import write_atomically
from dataset_loader.files import hold_out, video_id
from dataset_loader.preparing.jobs import printable
from dataset_loader.preparing.manifest import OK, Row, default_path, read_manifest, write_manifest

TEST_SHARE = 0.1


def split_data(
    source: str | Path,
    *,
    test: str | Path | None = None,
    test_share: float | None = None,
    leave_out_duplicates: bool = False,
    lists: str | Path | None = None,
) -> None:
    """Fill the `split` column of a manifest, or of two, and print what came out.

    source, test: a folder of videos with its manifest beside it, or a manifest. With `test` all of `source` is training
    and all of `test` is test; without, see `split`. lists: a folder for `train.txt` and `test.txt`, one path a line,
    relative to that folder, as `open_source` takes them. Raises InputError if a video or a content would be on both
    sides, or one of two folders lies in the other; then nothing is written.
    """
    if test is not None and (test_share is not None or leave_out_duplicates):
        raise InputError("a test set was named, so nothing is divided: leave --test-share and the duplicates' flag out")
    sources = [_Source(source), *([_Source(test)] if test is not None else [])]
    unknown = [one for one in sources if not one.folder.is_dir()]
    if lists is not None and unknown:
        raise InputError(f"the videos of {unknown[0].manifest} are not in {unknown[0].folder}: no list can be written")
    if test is None:
        share = TEST_SHARE if test_share is None else test_share
        done = [split(sources[0].rows, share, leave_out_duplicates=leave_out_duplicates)]
    else:
        if all(one.folder.is_dir() for one in sources):
            from dataset_loader.disjoint import check_disjoint  # brings the decoders along

            check_disjoint(*(one.folder for one in sources))
        sides = zip(("train", "test"), sources, strict=True)
        done = [[replace(row, split=side * (row.status == OK)) for row in one.rows] for side, one in sides]
        check_no_overlap(*done)
    for group in duplicates(row for rows in done for row in rows):
        print(printable(f"the same content: {', '.join(row.path for row in group)}"))
    for one, rows in zip(sources, done, strict=True):
        write_manifest(one.manifest, rows)
    for side in ("train", "test"):
        chosen = [(one, row) for one, rows in zip(sources, done, strict=True) for row in rows if row.split == side]
        print(f"{side}: {len(chosen)} videos, {sum(row.seconds for _, row in chosen) / 3600:.2f} hours")
        if lists is not None:
            _write_list(Path(lists) / f"{side}.txt", [one.folder / row.path for one, row in chosen])


class _Source:
    """A manifest, its rows, and the folder that it tells of, from the path of either."""

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        self.folder = path if path.is_dir() else path.with_name(path.name.split(".manifest")[0])
        self.manifest = default_path(path) if path.is_dir() else path
        if path.is_dir() and not self.manifest.exists():
            raise InputError(f"{path} has no manifest {self.manifest}; write it with siammae data validate {path}")
        self.rows = read_manifest(self.manifest)


def _write_list(path: Path, videos: Sequence[Path]) -> None:
    """Write the paths of videos, one a line, relative to the list's folder; absolute if they are on another drive."""
    top = os.path.realpath(path.parent)
    lines = []
    for video in videos:
        if "\n" in str(video):
            raise InputError(f"the name {str(video)!r} holds a line break, so it cannot stand in {path}; rename it")
        real = os.path.join(os.path.realpath(video.parent), video.name)
        try:
            lines.append(os.path.relpath(real, top))
        except ValueError:
            lines.append(real)
    data = "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape")
    if path.exists() and path.read_bytes() != data:
        raise InputError(f"{path} is there already and is another list; it is not overwritten")
    try:
        write_atomically(path, lambda file: file.write(data))
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror})") from error


def split(rows: Sequence[Row], test_share: float = TEST_SHARE, *, leave_out_duplicates: bool = False) -> list[Row]:
    """Rows with their `split`: those in use are "test" with a probability of `test_share`, by a hash of the video's
    id, else "train"; the others are empty.

    A video stays on its side whatever other files come or go. Raises InputError if files of one content would come to
    both sides; with `leave_out_duplicates` only the first of them by path is used.
    """
    used = [row for row in rows if row.status == OK]
    copies = {row.path for group in duplicates(used) for row in group[1:]} if leave_out_duplicates else set()
    names = {row.path: f"{video_id(row.path)}.mp4" for row in used if row.path not in copies}
    held = set(hold_out(sorted(set(names.values())), test_share)[1])
    sides = {path: "test" if name in held else "train" for path, name in names.items()}
    done = [replace(row, split=sides.get(row.path, "")) for row in rows]
    check_no_overlap([row for row in done if row.split == "train"], [row for row in done if row.split == "test"])
    return done


def duplicates(rows: Iterable[Row]) -> list[list[Row]]:
    """Groups of rows with the same content, each sorted by path."""
    groups: defaultdict[tuple[str, int], list[Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: row.path):
        if row.hash:
            groups[row.hash, row.bytes].append(row)
    return [group for group in groups.values() if len(group) > 1]


def check_no_overlap(train: Iterable[Row], test: Iterable[Row]) -> None:
    """Raise InputError if a video id or the content of a file is in both."""
    train, test = list(train), list(test)
    by_id = {video_id(row.path): row.path for row in train}
    by_content = {row.hash: row.path for row in train if row.hash}
    overlap = [(row.path, by_id[video_id(row.path)], "id") for row in test if video_id(row.path) in by_id]
    overlap += [(row.path, by_content[row.hash], "content") for row in test if row.hash in by_content]
    if overlap:
        path, other, what = overlap[0]
        raise InputError(
            f"{path} (test) and {other} (train) have the same {what}: training would see a test video "
            f"({len(overlap)} such files); remove one of each two, or leave duplicates out"
        )
