"""notebooks/how_we_know.ipynb: short cells, and every check in it agrees when it runs from top to bottom."""

import re
from pathlib import Path

import nbclient
import nbformat

ROOT = Path(__file__).parents[1]


def test_it_runs_and_agrees(monkeypatch, tmp_path):
    notebook = nbformat.read(ROOT / "notebooks" / "how_we_know.ipynb", as_version=4)
    assert all(len(cell.source.splitlines()) <= 15 for cell in notebook.cells if cell.cell_type == "code")
    monkeypatch.setenv("SIAMMAE_ROOT", str(ROOT))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(ROOT / "notebooks")}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    said = "".join(output.text for output in outputs if output.output_type == "stream")
    differences = re.findall(r"^(\w+), largest difference: (\S+)$", said, re.M)
    assert [name for name, _ in differences] == ["patchify", "normalise", "block", "propagation"]
    assert all(float(value) < 1e-5 for _, value in differences)
    assert "in hidden patches of f2: 0.0" in said and said.count("of 144 patches are seen") == 3
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
