"""What the README and the pages of docs/ tell people to type exists, and the README's Python runs."""

import io
import itertools
import re
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path

import pytest
import torch

from cli.main import COMMANDS, main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.S)
PAGES = [README, *(page.read_text().replace("\\\n", "") for page in sorted((ROOT / "docs").glob("*.md")))]
TYPED = sorted(
    {line for page in PAGES for line in re.findall(r"^(?: {4})?((?:siammae|make) [^#\n]+?) *(?:#.*)?$", page, re.M)}
)


def test_the_pages_name_commands():
    assert len(TYPED) >= 20


def test_the_readme_is_short():
    assert len(README.split()) <= 1000


def test_links_lead_somewhere():
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert "://" in link or (page.parent / link).exists(), f"{page.name} links to {link}"


@cache
def help_of(*words):
    """What a command says of itself; once for all lines that name it."""
    said = io.StringIO()
    with redirect_stdout(said), pytest.raises(SystemExit):
        main([*words, "--help"])
    return said.getvalue()


@pytest.mark.parametrize("line", TYPED)
def test_commands_and_flags_exist(line):
    program, *words = line.split()
    if program == "make":
        targets = (ROOT / "Makefile").read_text()
        assert re.search(rf"^{words[0]}:", targets, re.M), line
        return
    name = " ".join(words[:2]) if words[0] == "data" else words[0]
    assert name in COMMANDS, line
    benchmark = words[1:2] if name in ("eval", "score") and not words[1].isupper() else []
    preset = [w for flag, w in itertools.pairwise(words) if flag == "--preset"]
    text = help_of(*name.split(), *benchmark, *(["--preset", *preset] if preset else []))
    for flag in re.findall(r"--[\w-]+", line):
        assert flag in text, f"{line}: {flag} is no flag of {name}"


def test_the_python_runs(clips, tmp_path, monkeypatch):
    (code,) = (text for language, text in BLOCKS if language == "python")
    for full, small in {
        '"siammae_base_patch16", weights="weights/"': '"siammae_micro_patch8"',
        '"dataset/"': f"{str(clips)!r}, image_size=64",
        "batch_size=64, workers=8": "batch_size=4",
        "epochs=60": "epochs=1",
    }.items():
        assert full in code
        code = code.replace(full, small)
    samples = ROOT / "samples.pickle"
    (tmp_path / "samples.pickle").symlink_to(samples)
    monkeypatch.chdir(tmp_path)
    names = {"images": torch.rand(2, 3, 64, 96)}
    exec(code, names)
    assert names["features"].shape == (2, 8, 12, 128) and len(names["figures"]) == 2


def test_the_tests_that_hold_an_error_exist():
    """The table of tests/README.md; `…` is the file named before."""
    table = (ROOT / "tests" / "README.md").read_text()
    names = re.findall(r"`(\S+\.py|…)(?:::(\w+))?`", table)
    assert len(names) > 40
    path = ROOT
    for file, test in names:
        path = path if file == "…" else ROOT / "tests" / file
        assert path.is_file() and f" {test}" in path.read_text(), f"{file}::{test}"
