"""Who may import whom: read from the source, and seen in a fresh interpreter."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import imports

ROOT = Path(__file__).parents[2]
STANDARD = sys.stdlib_module_names
# Folder -> top-level packages it may import, beside the standard library and itself.
ALLOWED = {
    "varloss": {"torch"},
    "integrations/varloss_lightly": {"torch", "varloss", "lightly", "torchvision", "pytorch_lightning"},
    "integrations/varloss_lightning": {"torch", "varloss", "torchmetrics", "lightning", "pytorch_lightning"},
    "integrations/varloss_metric_learning": {"torch", "varloss", "pytorch_metric_learning"},
    "integrations/varloss_solo": {
        "torch",
        "varloss",
        "hydra",
        "omegaconf",
        "lightning",
        "solo",
        "numpy",
        "PIL",
    },
    "integrations/hydra_plugins": {"hydra", "varloss_solo"},
}
# One file is there for those who have Triton; nothing imports it before a half-precision batch on a GPU asks for it.
EXCEPTIONS = {"varloss/_kernels/triton.py": {"triton"}}
# The harness may use any third-party library, but of ours only these; solo-learn is driven as a subprocess.
HARNESS = "benchmarks/varloss_bench"
HARNESS_OURS = {"varloss", "varloss_lightly", "varloss_lightning", "varloss_bench"}
# Scripts for a short visit to a GPU, which is not part of the wheel.
VISIT = "benchmarks/gpu"
VISIT_OURS = {"gpu", "varloss", "varloss_bench"}
OURS = {"gpu", "varloss_bench"} | {Path(folder).name for folder in ALLOWED}
# Floors of a package, lowest first: folders and files that import from lower floors only, not from their own.
FLOORS = {
    "varloss": [{"_core"}, {"_kernels", "distributed", "metrics"}, {"losses"}, {"functional"}, {"__init__"}],
    "benchmarks/varloss_bench": [
        {"options", "methods", "datasets", "measures", "messages"},
        {"config"},
        {"grid"},
        {"data", "statistics"},
        {"training"},
        {"records"},
        {"execution", "report"},
        {"commands"},
        {"compare", "studies"},
        {"tune"},
        {"__init__", "cli", "__main__"},
    ],
}
MODULES = (*ALLOWED, HARNESS, VISIT)
MOST_LINES = 400
MOST_LINES_OF_THE_CORE = 5000


def imported(path: Path) -> set[str]:
    """Top-level names that a file imports, wherever in the file the import stands."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add((node.module or "").split(".")[0])
    return names


def sources(folder: str) -> list[Path]:
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files, f"{folder} has no source: this test looks in the wrong place"
    return files


@pytest.mark.parametrize("folder", ALLOWED)
def test_imports_follow_the_arrows(folder):
    own = {Path(folder).name} if Path(folder).name != "hydra_plugins" else set()
    for path in sources(folder):
        name = path.relative_to(ROOT)
        assert imported(path) - STANDARD - own <= ALLOWED[folder] | EXCEPTIONS.get(str(name), set()), name


def test_harness_imports_of_ours_only_what_it_compares():
    for path in sources(HARNESS):
        assert (imported(path) & OURS) <= HARNESS_OURS, path.relative_to(ROOT)
        assert "solo" not in imported(path), path.relative_to(ROOT)


def test_visit_imports_what_a_bare_machine_has():
    """Beside the standard library and the checkout; the other packages come in by the study it calls."""
    for path in sources(VISIT):
        allowed = VISIT_OURS | {"torch", "triton", "pytest", "rich"}
        assert imported(path) - STANDARD <= allowed, path.relative_to(ROOT)


def test_visit_starts_without_torch():
    """The process that watches over the steps takes no memory of the card, and answers at once."""
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'benchmarks')!r}); import gpu.command; "
        "print(sorted({m.split('.')[0] for m in sys.modules} & {'torch', 'triton', 'varloss', 'pytest'}))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_nothing_imports_the_tests():
    test_modules = {path.stem for path in (ROOT / "tests").rglob("*.py")}
    for folder in MODULES:
        for path in sources(folder):
            assert not imported(path) & (test_modules | {"tests"}), path.relative_to(ROOT)


def names_torch_distributed(path: Path) -> bool:
    """Whether code, not prose, speaks of torch.distributed."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import) and any(alias.name.startswith("torch.distributed") for alias in node.names):
            return True
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch.distributed"):
            return True
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.distributed":
            return True
    return False


def test_two_files_name_torch_distributed():
    assert [path.name for path in sources("varloss") if names_torch_distributed(path)] == ["ranks.py", "distributed.py"]


def test_core_loads_torch_and_nothing_else():
    code = (
        "import sys, torch; before = set(sys.modules); import varloss; "
        "print(sorted({m.split('.')[0] for m in set(sys.modules) - before}))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(ast.literal_eval(result.stdout)) - set(STANDARD)
    assert loaded <= {"varloss", "torch"}, loaded


def test_adapter_folders_are_not_named_after_their_framework():
    """A folder called ``lightly`` or ``solo`` on sys.path would hide the framework."""
    names = {path.name for path in (ROOT / "integrations").iterdir() if path.is_dir()}
    frameworks = set().union(*ALLOWED.values()) - OURS
    assert {"lightly", "solo", "hydra"} <= frameworks
    assert not names & frameworks
    assert not (ROOT / "integrations" / "hydra_plugins" / "__init__.py").exists()
    assert not (ROOT / "integrations" / "__init__.py").exists()


@pytest.mark.parametrize("folder", FLOORS)
def test_folders_import_from_lower_floors(folder):
    floors = {room: number for number, rooms in enumerate(FLOORS[folder]) for room in rooms}

    def room(module: str) -> str:
        return [*module.split("."), "__init__"][1]

    graph = imports.graph(ROOT / folder)
    assert {room(module) for module in graph} == set(floors), "a folder has no floor, or a floor no folder"
    arrows = [
        (source, target) for source, targets in graph.items() for target in targets if room(source) != room(target)
    ]
    assert arrows
    upward = [f"{source} -> {target}" for source, target in arrows if floors[room(target)] >= floors[room(source)]]
    assert upward == []


@pytest.mark.parametrize("folder", [*MODULES, "tests/support"])
def test_no_import_circle(folder):
    """Imports inside functions and for types only are counted, too."""
    assert imports.circles(imports.graph(ROOT / folder)) == []


def test_circles_are_found():
    circle = {"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"d", "a"}}
    assert imports.circles(circle) == [["b", "c"], ["d"]]


def test_no_test_imports_a_test():
    """Neither itself nor in a program that a child runs."""
    program = re.compile(r"\b(?:import|from)\s[^;\n]*\b(?:test_\w+|conftest)\b")
    for path in sources("tests"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert not program.search(node.value), path
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            if isinstance(node, ast.ImportFrom):
                names += [node.module or "", "tests" if node.level else ""]
            parts = {part for name in names for part in name.split(".")}
            assert not [part for part in parts if part.startswith("test_") or part in {"tests", "conftest"}], path


@pytest.mark.parametrize("folder", MODULES)
def test_files_are_short(folder):
    lengths = {str(path.relative_to(ROOT)): path.read_text().count("\n") for path in sources(folder)}
    assert {path: length for path, length in lengths.items() if length > MOST_LINES} == {}


def test_core_is_small():
    lines = sum(path.read_text().count("\n") for path in sources("varloss"))
    assert lines <= MOST_LINES_OF_THE_CORE, "shorten the core, or raise the limit by what a new loss needs"
