"""SiamMAE.ipynb: thin, and it runs from top to bottom into a page."""

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]


def test_cells_are_short_and_hold_no_definitions():
    notebook = nbformat.read(ROOT / "SiamMAE.ipynb", as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert len(cell.source.splitlines()) <= 15, cell.source
            assert not re.search(r"^\s*(def|class)\s|lambda", cell.source, re.M), cell.source
            assert cell.outputs == [] and cell.execution_count is None


@pytest.mark.parametrize("preset", ["smoke"])
def test_it_runs_from_top_to_bottom(preset, clips, tmp_path):
    status = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, cwd=ROOT).stdout
    command = [sys.executable, "-m", "cli.main", "demo", "--preset", preset, "--data", str(clips)]
    result = subprocess.run(
        [*command, "--out", str(tmp_path / "page"), "--root", str(tmp_path)], capture_output=True, text=True, cwd=ROOT
    )
    assert result.returncode == 0, result.stdout + result.stderr
    page = (tmp_path / "page" / "SiamMAE.html").read_text()
    assert page.count("data:image/png;base64,") >= 11 and "wrong f1" in page and "Traceback" not in page
    (difference,) = re.findall(r"by hand and by evaluation.propagation: largest difference (\d\S*)", page)
    assert float(difference) < 1e-5
    assert len(list((tmp_path / "losses").glob("smoke_mask*.txt"))) == 3
    assert len(list((tmp_path / "test_losses").glob("*.txt"))) == 1
    after = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, cwd=ROOT).stdout
    assert after == status
