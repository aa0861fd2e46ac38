"""The notebooks of notebooks/: thin, they name what there is, and (slow) they run from top to bottom, in smoke size.
SiamMAE.ipynb runs in `test_notebook`."""

import ast
import inspect
import json
import os
import re
from pathlib import Path

import pytest

from tests.foreign import golden

ROOT = Path(__file__).parents[1]
SETTINGS = ("PRESET", "ROOT", "SMOKE", "SOURCES", "VIDEOS")
OURS = ("common", "mae", "ml", "dataset_loader", "evaluation", "benchmarks", "cli", "pages")

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
    import nbformat
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


every_notebook = pytest.mark.parametrize(
    "path", [ROOT / "SiamMAE.ipynb", *sorted((ROOT / "notebooks").glob("*.ipynb"))], ids=lambda path: path.stem
)


def code_of(path: Path) -> list[str]:
    """The source of each cell of code, without IPython's own commands."""
    cells = json.loads(path.read_text())["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return [re.sub(r"^%.*$", "", source, flags=re.M) for source in sources]


@every_notebook
def test_cells_are_short_and_hold_no_definitions(path):
    cells = json.loads(path.read_text())["cells"]
    assert cells[0]["cell_type"] == "markdown"
    for cell in cells:
        if cell["cell_type"] == "code":
            assert len(cell["source"]) <= 15, cell["source"]
            assert cell["outputs"] == [] and cell["execution_count"] is None
    assert not re.search(r"^\s*(def|class)\s|lambda", "\n".join(code_of(path)), re.M)


@every_notebook
def test_what_cells_import_and_call_is_there(path):
    """Imports, what is asked of imported modules and classes, and the arguments of each direct call of our packages."""
    tree, known = ast.parse("\n".join(code_of(path))), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            exec(compile(ast.Module([node], []), path.name, "exec"), known)
    assigned = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}

    def found(node):
        if isinstance(node, ast.Attribute):
            owner = found(node.value)
            return getattr(owner, node.attr) if inspect.ismodule(owner) or inspect.isclass(owner) else None
        return known.get(node.id) if isinstance(node, ast.Name) and node.id not in assigned else None

    called = 0
    for node in ast.walk(tree):
        what = found(node.func) if isinstance(node, ast.Call) else found(node)
        if isinstance(node, ast.Call) and (getattr(what, "__module__", None) or "").split(".")[0] in OURS:
            given, words = [a for a in node.args if not isinstance(a, ast.Starred)], {w.arg: w for w in node.keywords}
            unpacked = len(given) < len(node.args) or bool(words.pop(None, None))
            signature = inspect.signature(what)
            (signature.bind_partial if unpacked else signature.bind)(*given, **words)
            called += 1
    assert called >= 3


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["notebooks", "."])
def test_loading_is_shown_and_measured(folder, execute):
    text, pictures = execute("dataloading", ROOT / folder, SMOKE=1)
    assert pictures["image/png"] >= 8
    for said in ("chi-square", "through the loader, gaps", "packed shards, R = 1", "cores feed"):
        assert said in text


@pytest.mark.slow
def test_a_model_of_clips_is_trained_and_shown(execute, clips, tmp_path):
    text, pictures = execute("mae_st", ROOT / "notebooks", PRESET="mae_st_large_smoke", VIDEOS=clips, ROOT=tmp_path)
    assert pictures["image/png"] >= 11 and pictures["image/gif"] == 1  # clips, masks, the loss, two sheets, features
    for said in ("clips an epoch", "million parameters", "the largest difference", "unseen", "the last"):
        assert said in text
    assert len(list((tmp_path / "losses").glob("mae_st_*.txt"))) == 1


def test_every_check_of_how_we_know_agrees(monkeypatch, capsys):
    """Its cells one after another, without a kernel."""
    monkeypatch.setenv("SIAMMAE_ROOT", str(ROOT))
    names: dict = {}
    for source in code_of(ROOT / "notebooks" / "how_we_know.ipynb"):
        exec(compile(source, "how_we_know", "exec"), names)
    text = capsys.readouterr().out
    differences = re.findall(r"^(\w+), largest difference: (\S+)$", text, re.M)
    assert [name for name, _ in differences] == ["patchify", "normalise", "block", "propagation"]
    assert all(float(value) < 1e-5 for _, value in differences)
    assert "in hidden patches of f2: 0.0" in text and text.count("of 144 patches are seen") == 3


@pytest.mark.slow
def test_uncertainty_is_measured(execute):
    """Its figures and tables are tested fast in `test_uncertainty_notebook`."""
    text, pictures = execute("uncertainty", ROOT / "notebooks", SMOKE=1)
    assert pictures["image/png"] == 6
    for said in ("called σ² =  1.0: 0.500", "| head, patch |", "| texture of f1 |", "| 1.00 s |"):
        assert said in text
