"""JHMDB: joints of people (Jhuang et al. 2013)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from common.errors import InputError
from evaluation.benchmark import Keypoints
from evaluation.videos import Joints, Video, pictures_in, read_list, select


@dataclass(frozen=True)
class JHMDB(Keypoints):
    """JHMDB's test videos, PCK of 15 joints: Rename_Images/<class>/<clip>/, joint_positions/<class>/<clip>/ and lists
    <class>_test_split1.txt, in splits/ or beside them, that end a test video's line in 2.
    """

    split: Literal[1, 2, 3] = 1
    """which of the three splits"""

    def videos(self, names: Sequence[str] = ()) -> Iterator[Video]:
        root, pattern = self.data, f"*_test_split{self.split}.txt"
        found = sorted((root / "splits").glob(pattern)) or sorted(root.glob(pattern))
        lists = [file for file in found if not file.name.startswith(".")]
        if not lists:
            raise InputError(
                f"{root} holds no list {pattern}, nor does {root / 'splits'}: expected JHMDB's split lists there"
            )
        listed = []
        for file in lists:
            for line in read_list(file):
                clip, _, part = line.partition(" ")
                if part.strip() == "2":
                    listed.append(f"{file.name.removesuffix(pattern[1:])}/{Path(clip).stem}")
        for name in select(listed, names):
            joints = read_joint_positions(root / "joint_positions" / name / "joint_positions.mat")
            paths = pictures_in(root / "Rename_Images" / name)[: len(joints)]
            if len(paths) < len(joints):
                raise InputError(f"{name} has {len(joints)} frames with joints but {len(paths)} pictures")
            yield Video(name, paths, joints[0], joints.__getitem__, (root,))


def read_joint_positions(path: Path) -> Joints:
    """`pos_img` of a JHMDB file, [2, 15, T] counted from 1 → joints [T, 15, 2] counted from 0."""
    from scipy.io import loadmat

    if not path.is_file():
        raise InputError(f"{path} does not exist: expected the joints of a JHMDB clip")
    try:
        positions = np.asarray(loadmat(path)["pos_img"], dtype=np.float64)
    except KeyError as error:
        raise InputError(f"{path} holds no pos_img: expected the joints of a JHMDB clip, [2, 15, frames]") from error
    except Exception as error:  # a damaged file can break the reader in any way
        raise InputError(f"{path} is damaged or cut off ({error}): get it again") from error
    if positions.ndim == 2:  # MATLAB drops a last axis of one frame
        positions = positions[..., None]
    if positions.ndim != 3 or positions.shape[0] != 2:
        raise InputError(f"{path}: pos_img has shape {positions.shape}; expected [2, 15, frames]")
    return positions.transpose(2, 1, 0) - 1
