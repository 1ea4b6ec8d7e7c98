"""What the documentation shows runs: Python as it is printed, options of commands, links, and examples in docstrings."""

from __future__ import annotations

import ast
import doctest
import importlib
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import torch
from support.doc_examples import PAGES, ROOT, blocks, skip_without

import varloss

# Lightning's and accelerate's advice on toy runs, and uses of what torch is about to retire.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:The number of training batches.*log_every_n_steps:UserWarning"),
]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def imports(code: str) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
    return found


WITH_PYTHON = [page for page in PAGES if blocks(page, "python")]
LOSS_PAGES = [page for page in PAGES if page.parent.name == "losses" and page.name != "README.md"]


def test_there_are_examples():
    assert len(WITH_PYTHON) >= 15
    assert ROOT / "README.md" in WITH_PYTHON
    assert set(LOSS_PAGES) <= set(WITH_PYTHON)


@pytest.mark.parametrize("page", WITH_PYTHON, ids=name_of)
def test_examples_run(page, tmp_path, monkeypatch):
    """From top to bottom in one namespace, as a reader would type them."""
    code = blocks(page, "python")
    skip_without(set().union(*map(imports, code)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    names: dict[str, object] = {"__name__": "example"}
    for block in code:
        exec(compile(block, name_of(page), "exec"), names)
    scalars = [value for value in names.values() if isinstance(value, torch.Tensor) and value.ndim == 0]
    assert all(value.isfinite() for value in scalars)
    assert scalars or page not in LOSS_PAGES


def test_every_loss_module_is_on_a_page():
    text = "".join(page.read_text() for page in LOSS_PAGES)
    losses = [name for name in varloss.__all__ if name.endswith("Loss")]
    assert len(losses) >= 9
    assert [name for name in losses if f"varloss.{name}(" not in text] == []


WITH_DOCTEST = [
    path
    for folder in ("varloss", "integrations", "benchmarks/varloss_bench")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if ">>>" in path.read_text()
]


@pytest.mark.parametrize("path", WITH_DOCTEST, ids=name_of)
def test_examples_in_docstrings_run(path):
    skip_without(imports(path.read_text()))
    name = name_of(path).removeprefix("integrations/").removeprefix("benchmarks/").removesuffix(".py").replace("/", ".")
    module = importlib.import_module(name.removesuffix(".__init__"))
    results = [doctest.DocTestRunner().run(test) for test in doctest.DocTestFinder().find(module)]
    assert sum(result.attempted for result in results) > 0
    assert sum(result.failed for result in results) == 0


def commands() -> list[tuple[str, list[str]]]:
    """(page, words) of every command line, with continued lines joined and comments dropped."""
    found = []
    for page in PAGES:
        for block in blocks(page, "bash", "console", ""):
            for line in re.sub(r"\\\n\s*", " ", block).splitlines():
                for part in line.removeprefix("$ ").split("&&"):
                    words = shlex.split(part, comments=True)
                    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                        words = words[1:]
                    if words:
                        found.append((name_of(page), words))
    return found


def test_shell_examples_parse():
    for page in PAGES:
        for block in blocks(page, "bash"):
            result = subprocess.run(["bash", "-n"], input=block, text=True, capture_output=True, check=False)
            assert result.returncode == 0, f"{name_of(page)}: {result.stderr}"


@pytest.mark.parametrize(
    ("page", "words"), [(page, words) for page, words in commands() if words[0] in ("varloss-bench", "varloss-solo")]
)
def test_options_of_our_commands_exist(page, words):
    """``--help`` after the command: names of commands and options are read, no values, and nothing is run."""
    if words[0] == "varloss-bench":
        from typer.testing import CliRunner

        from varloss_bench.cli import app

        names = 3 if words[1:2] == ["study"] else 2
        result = CliRunner().invoke(app, [*words[1:names], "--help", *words[names:]])
        assert result.exit_code == 0, result.output
    else:
        from varloss_solo.__main__ import main

        with pytest.raises(SystemExit) as stopped:
            main([*words[1:], "--help"])
        assert stopped.value.code == 0


def test_extras_and_markers_that_are_named_exist():
    project = (ROOT / "pyproject.toml").read_text()
    extras, markers = set(), set()
    for _, words in commands():
        if words[0] == "pip":
            extras |= {
                extra for word in words for found in re.findall(r"\[([\w,]+)\]", word) for extra in found.split(",")
            }
        if words[0] == "pytest" and "-m" in words:
            markers.add(words[words.index("-m") + 1])
    assert {"lightly", "bench", "test"} <= extras
    assert [extra for extra in extras if not re.search(rf"^{extra} = \[", project, flags=re.MULTILINE)] == []
    assert [marker for marker in markers if f'"{marker}: ' not in project] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_local_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!\w+:|#)([^)#\s]+)", page.read_text()):
        assert (page.parent / target).exists(), f"links to {target}"


def test_every_folder_of_results_has_its_section():
    """A link to the folder leads there on the site (docs/conf.py)."""
    text = (ROOT / "docs" / "results" / "index.md").read_text()
    folders = [path.name for path in (ROOT / "benchmarks" / "results").iterdir() if path.is_dir()]
    assert folders
    assert [name for name in folders if f"(results-{name})=" not in text] == []
