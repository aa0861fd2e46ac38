"""The folders are the diagram: who may import whom, and what an import may cost."""

import ast
import graphlib
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PACKAGES = {"common", "pages", "mae", "ml", "dataset_loader", "evaluation", "cli"}
BELOW = {"common", "pages", "mae"}
MAY_IMPORT = {
    "common": set(),
    "pages": {"common"},
    "mae": {"common"},
    "ml": BELOW,
    "dataset_loader": BELOW,
    "evaluation": BELOW,
    "cli": PACKAGES - {"cli"},
}


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def no_circle(package: str) -> list[str]:
    """The modules of a package, each behind all that it imports at its top; graphlib raises CycleError for a circle."""
    files = {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in (ROOT / package).rglob("*.py")}
    needs: dict[str, set[str]] = {}
    for name, path in files.items():
        tree = parsed(path)
        named: set[str] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                named |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
            elif isinstance(node, ast.Import):
                named |= {alias.name for alias in node.names}
        needs[name] = (named & files.keys()) - {name}
    return list(graphlib.TopologicalSorter(needs).static_order())


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_no_file_imports_itself_by_way_of_others(package):
    assert no_circle(package)


def imports(path: Path):
    """(module, at the top of the file?) of every import, also those inside functions and `if TYPE_CHECKING`."""
    tree = parsed(path)
    top = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], id(node) in top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield (node.module or "").split(".")[0], id(node) in top


@pytest.mark.parametrize("package", sorted(p for p in PACKAGES if (ROOT / p).is_dir()))
def test_packages_import_only_what_lies_below_them(package):
    wrong = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in (ROOT / package).rglob("*.py")
        for module, _ in imports(path)
        if module in PACKAGES | {"tests", "benchmarks"} and module not in MAY_IMPORT[package] | {package}
    ]
    assert wrong == []


def test_mae_stands_on_torch_and_timm():
    """`requests` and `tqdm`, for downloads, and `safetensors` are imported inside the functions that need them."""
    allowed = {"torch", "timm", "mae", "common"} | sys.stdlib_module_names
    at_the_top = {(p.name, m) for p in (ROOT / "mae").glob("*.py") for m, top in imports(p) if top and m not in allowed}
    assert at_the_top == set()


@pytest.mark.parametrize(
    ("modules", "heavy"),
    [
        ("hubconf, mae.formats, ml.foreign, ml.utils, ml.presets", "av matplotlib requests scipy cv2 tyro IPython"),
        ("ml.config, ml.presets", "torch timm"),
        ("common.errors, common.files, common.download", "torch numpy"),
        ("cli.data_download, cli.data_split, cli.data_validate, cli.data_prepare", "torch av matplotlib requests"),
    ],
)
def test_imports_bring_nothing_heavy_along(modules, heavy):
    code = f"import sys, {modules}; print(sorted(set({heavy.split()}) & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.stdout.strip() == "[]", result.stdout + result.stderr


def test_the_conda_environment_installs_this_project():
    environment = yaml.safe_load((ROOT / "env.yml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert environment["name"] == project["name"] == "siammae"
    python, pip, through_pip = environment["dependencies"]
    assert python == f"python{project['requires-python']}" and pip == "pip"
    (own,) = through_pip["pip"]
    path, _, extras = own.removeprefix("-e ").rstrip("]").partition("[")
    assert path == "." and set(extras.split(",")) <= set(project["optional-dependencies"])
    named = {"torch", "timm", "torchvision", "av", "matplotlib", "numpy", "jupyter", "requests"}  # by the user
    assert named <= {line.split(">=")[0] for line in project["dependencies"]}
    assert "pytorchvideo" in project["optional-dependencies"] and "pytorchvideo" in extras


def test_lower_bounds_only_and_constraints_that_satisfy_them():
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    tried = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        name, version = line.split("==")
        tried[canonicalize_name(name)] = version
    wanted = [Requirement(line) for line in project["dependencies"] + project["optional-dependencies"]["dev"]]
    for requirement in wanted:
        if requirement.name == project["name"]:
            continue
        assert all(s.operator == ">=" for s in requirement.specifier), f"{requirement} is more than a lower bound"
        assert requirement.specifier.contains(tried[canonicalize_name(requirement.name)]), requirement


def test_no_committed_file_names_a_place_of_one_machine():
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    words = ["git", "grep", "-nIE", "/(root|home|work|Users)" + "/"]
    found = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    assert (found.returncode, found.stdout) == (1, "")  # 1: none
