"""The notebooks of notebooks/: thin, and they run from top to bottom, in smoke size. SiamMAE.ipynb: `test_notebook`."""

import os
import re
from pathlib import Path

import nbformat
import pytest

from tests.foreign import golden

ROOT = Path(__file__).parents[1]
SETTINGS = ("PRESET", "ROOT", "SMOKE", "SOURCES", "VIDEOS")

pytestmark = pytest.mark.filterwarnings("ignore")  # of Jupyter's own packages, about each other


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    """One for all notebooks: it takes seconds to import what they need."""
    from jupyter_client.manager import KernelManager

    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(env={**os.environ, "IPYTHONDIR": str(tmp_path_factory.mktemp("ipython"))})
    yield manager
    manager.shutdown_kernel(now=True)


@pytest.fixture
def execute(kernel):
    """Run a notebook in a folder, with nothing left of the one before; what it prints, and its pictures by format."""
    from nbclient import NotebookClient

    def execute(name: str, folder: Path, **settings) -> tuple[str, dict[str, int]]:
        notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
        environment = {f"SIAMMAE_{key}": str(settings.get(key, "")) for key in SETTINGS}
        begin = f"%reset -f\nimport os\nos.chdir({str(folder)!r})\nos.environ.update({environment!r})"
        notebook.cells.insert(0, nbformat.v4.new_code_cell(begin))
        client = NotebookClient(notebook, timeout=1200, km=kernel)
        try:
            client.execute()
        finally:
            client.kc.stop_channels()  # the kernel stays, and so nbclient leaves them open
        outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
        text = "".join(output.text for output in outputs if output.output_type == "stream")
        kinds = [kind for output in outputs for kind in output.get("data", {}) if kind.startswith("image/")]
        return text, {kind: kinds.count(kind) for kind in kinds}

    return execute


@pytest.mark.parametrize(
    "path", [ROOT / "SiamMAE.ipynb", *sorted((ROOT / "notebooks").glob("*.ipynb"))], ids=lambda path: path.stem
)
def test_cells_are_short_and_hold_no_definitions(path):
    cells = nbformat.read(path, as_version=4).cells
    assert cells[0].cell_type == "markdown"
    for cell in cells:
        if cell.cell_type == "code":
            assert len(cell.source.splitlines()) <= 15, cell.source
            assert not re.search(r"^\s*(def|class)\s|lambda", cell.source, re.M), cell.source
            assert cell.outputs == [] and cell.execution_count is None


def test_files_of_other_projects_are_compared(execute, tmp_path):
    sources = []
    for name in ("cropmae", "dino", "hf_vitmae", "timm_vit"):
        (tmp_path / name).mkdir()
        recorded = golden(name)
        sources.append(f"{recorded.write(tmp_path / name)},num_heads={recorded.num_heads}")
    sources = ";".join([*sources, "siammae_micro_64", "pixels"])
    text, pictures = execute("compare_encoders", ROOT / "notebooks", SOURCES=sources, ROOT=ROOT)
    for said in ("CropMAE, ViT-48×2/8", "DINO, ViT-40×2/8", "ViTMAE of Transformers", "timm, ViT-48×2/8"):
        assert said in text, said
    assert pictures["image/png"] == 1 + 6 + 6  # the video; affinities and masks of each encoder
    table = dict(re.findall(r"^(\S.*?) +(\d\.\d{3})$", text, re.M))
    assert len(table) >= 6 and all(0 <= float(score) <= 1 for score in table.values())


@pytest.mark.parametrize("folder", ["notebooks", pytest.param(".", marks=pytest.mark.slow)])
def test_loading_is_shown_and_measured(folder, execute):
    text, pictures = execute("dataloading", ROOT / folder, SMOKE=1)
    assert pictures["image/png"] >= 8
    for said in ("chi-square", "through the loader, gaps", "packed shards, R = 1", "cores feed"):
        assert said in text


def test_a_model_of_clips_is_trained_and_shown(execute, clips, tmp_path):
    text, pictures = execute("mae_st", ROOT / "notebooks", PRESET="mae_st_large_smoke", VIDEOS=clips, ROOT=tmp_path)
    assert pictures["image/png"] >= 11 and pictures["image/gif"] == 1  # clips, masks, the loss, two sheets, features
    for said in ("clips an epoch", "million parameters", "the largest difference", "unseen", "the last"):
        assert said in text
    assert len(list((tmp_path / "losses").glob("mae_st_*.txt"))) == 1


def test_every_check_of_how_we_know_agrees(execute):
    text, pictures = execute("how_we_know", ROOT / "notebooks", ROOT=ROOT)
    differences = re.findall(r"^(\w+), largest difference: (\S+)$", text, re.M)
    assert [name for name, _ in differences] == ["patchify", "normalise", "block", "propagation"]
    assert all(float(value) < 1e-5 for _, value in differences)
    assert "in hidden patches of f2: 0.0" in text and text.count("of 144 patches are seen") == 3
    assert pictures["image/png"] == 2


@pytest.mark.slow
def test_uncertainty_is_measured(execute):
    """Its figures and tables are tested fast in `test_uncertainty_notebook`."""
    text, pictures = execute("uncertainty", ROOT / "notebooks", SMOKE=1)
    assert pictures["image/png"] == 6
    for said in ("called σ² =  1.0: 0.500", "| head, patch |", "| texture of f1 |", "| 1.00 s |"):
        assert said in text
