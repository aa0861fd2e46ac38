"""notebooks/compare_encoders.ipynb: thin, and it runs from top to bottom with files as other projects write them."""

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from tests.foreign import golden

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "notebooks" / "compare_encoders.ipynb"


def test_cells_are_short_and_hold_no_definitions():
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    assert cells[0].cell_type == "markdown"
    for cell in cells:
        if cell.cell_type == "code":
            assert len(cell.source.splitlines()) <= 15, cell.source
            assert not re.search(r"^\s*(def|class)\s|lambda", cell.source, re.M), cell.source
            assert cell.outputs == [] and cell.execution_count is None


@pytest.fixture
def sources(tmp_path):
    """One file or folder of each of some families, as their projects write them."""
    found = []
    for name in ("cropmae", "dino", "hf_vitmae", "timm_vit"):
        (tmp_path / name).mkdir()
        recorded = golden(name)
        found.append(f"{recorded.write(tmp_path / name)},num_heads={recorded.num_heads}")
    return found


def test_it_runs_from_top_to_bottom(sources, tmp_path, monkeypatch):
    monkeypatch.setenv("SIAMMAE_SOURCES", ";".join([*sources, "siammae_micro_64", "pixels"]))
    monkeypatch.setenv("SIAMMAE_ROOT", str(ROOT))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    code = (
        "import sys, nbformat, nbclient\n"
        "notebook = nbformat.read(sys.argv[1], as_version=4)\n"
        "resources = {'metadata': {'path': sys.argv[3]}}\n"
        "nbclient.NotebookClient(notebook, timeout=300, resources=resources).execute()\n"
        "nbformat.write(notebook, sys.argv[2])\n"
    )
    out = tmp_path / "done.ipynb"
    command = [sys.executable, "-W", "ignore", "-c", code, str(NOTEBOOK), str(out), str(ROOT / "notebooks")]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    cells = nbformat.read(out, as_version=4).cells
    outputs = [output for cell in cells if cell.cell_type == "code" for output in cell.outputs]
    text = "".join(output.text for output in outputs if output.output_type == "stream")
    for said in ("CropMAE, ViT-48×2/8", "DINO, ViT-40×2/8", "ViTMAE of Transformers", "timm, ViT-48×2/8"):
        assert said in text, said
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 1 + 6 + 6  # the video; affinities and masks of each encoder
    table = dict(re.findall(r"^(\S.*?) +(\d\.\d{3})$", text, re.M))
    assert len(table) >= 6 and all(0 <= float(score) <= 1 for score in table.values())
