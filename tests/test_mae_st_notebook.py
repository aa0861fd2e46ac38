"""notebooks/mae_st.ipynb: thin, and it runs from top to bottom, in smoke size."""

import re
import subprocess
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "notebooks" / "mae_st.ipynb"


def test_cells_are_short_and_hold_no_definitions():
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    assert cells[0].cell_type == "markdown"
    for cell in cells:
        if cell.cell_type == "code":
            assert len(cell.source.splitlines()) <= 15, cell.source
            assert not re.search(r"^\s*(def|class)\s|lambda", cell.source, re.M), cell.source
            assert cell.outputs == [] and cell.execution_count is None


def test_it_runs_from_top_to_bottom(clips, tmp_path, monkeypatch):
    monkeypatch.setenv("SIAMMAE_PRESET", "mae_st_large_smoke")
    monkeypatch.setenv("SIAMMAE_VIDEOS", str(clips))
    monkeypatch.setenv("SIAMMAE_ROOT", str(tmp_path))
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
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    films = [output for output in outputs if "image/gif" in output.get("data", {})]
    assert len(pictures) >= 11 and len(films) == 1  # two clips, five masks, the loss, two sheets, the features
    for said in ("clips an epoch", "million parameters", "the largest difference", "unseen", "the last"):
        assert said in text
    assert len(list((tmp_path / "losses").glob("mae_st_*.txt"))) == 1
