"""A locale that knows only ASCII, with Python told to follow it, and file names that are not even UTF-8."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.slowly import slowly

ROOT = Path(__file__).parents[2]
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
NAMES = [b"caf\xe9_1.mp4", "größe_2.mp4".encode(), b"plain_3.mp4"]


@pytest.fixture
def folder(clips, tmp_path):
    """Videos under such names, where the file system takes them."""
    videos = tmp_path / "videos"
    videos.mkdir()
    for name, clip in zip(NAMES, sorted(clips.iterdir()), strict=False):
        try:
            os.link(clip, os.path.join(os.fsencode(videos), name))
        except OSError:
            pytest.skip("this file system takes names in UTF-8 only")
    return tmp_path


CODE = """
import sys
from cli.main import main
for line in sys.argv[1:]:
    assert main(line.split()) == 0, line
"""


TRAIN = "train --data videos --preset smoke --visits 1 --image-size 32 --epochs 1 --warmup-epochs 0"


@pytest.mark.parametrize("train", [(), *slowly((TRAIN,))], ids=["data", "training"])
def test_what_is_printed_and_written_keeps_the_names(train, folder):
    """The manifest lists all three, and training reads them."""
    lines = (
        "data validate videos --min-seconds 1 --jobs 1",
        "data prepare packed videos --out packed --jobs 1",
        *train,
    )
    environment = {**os.environ, **ASCII, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", CODE, *lines]
    result = subprocess.run(command, capture_output=True, cwd=folder, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    assert len(list((folder / "packed").iterdir())) > 1 and len(list(folder.glob("losses/*.txt"))) == len(train)
