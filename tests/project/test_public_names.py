"""Every public name of the core is tested over the tables of all losses, and stands in the documentation."""

from __future__ import annotations

import doctest
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType, ModuleType
from typing import Any

import pytest
import torch
from support import cases, ranks
from torch import nn

import varloss
from varloss import distributed, functional, metrics

ROOT = Path(__file__).parents[2]
MODULES = (varloss, functional, metrics, distributed)
MOST_NAMES_BESIDE_THE_LOSSES = 22
FUNCTIONS = {name: found for name in functional.__all__ if inspect.isfunction(found := getattr(functional, name))}
LOSSES = [
    found for name in varloss.__all__ if inspect.isclass(found := getattr(varloss, name)) and name != "MemoryBank"
]
VIEWS = [torch.randn(12, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]


@contextmanager
def called() -> Iterator[set[CodeType]]:
    """What Python code is entered."""
    seen: set[CodeType] = set()

    def look(frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            seen.add(frame.f_code)

    before = sys.getprofile()
    sys.setprofile(look)
    try:
        yield seen
    finally:
        sys.setprofile(before)


def missing(seen: set[CodeType], functions: dict[str, Callable[..., Any]]) -> list[str]:
    return [name for name, function in functions.items() if function.__code__ not in seen]


def test_every_function_is_called_by_the_table_of_conventions():
    with called() as seen:
        for case in cases.CASES.values():
            case(*VIEWS)
    assert missing(seen, FUNCTIONS) == []


def test_every_loss_that_gathers_is_in_the_table_of_ranks():
    """Modules, and functions that take the rows of other ranks."""
    gathering = {
        name: function for name, function in FUNCTIONS.items() if "gathered" in inspect.signature(function).parameters
    }
    assert len(gathering) > 5
    kinds: set[type[nn.Module]] = set()
    with called() as seen:
        for build in ranks.losses().values():
            loss_fn = build()
            loss_fn(*VIEWS)
            kinds |= {type(module) for module in loss_fn.modules()}
    assert [loss.__name__ for loss in LOSSES if loss not in kinds] == []
    assert missing(seen, gathering) == []


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_every_public_name_is_on_a_page_of_the_api(module: ModuleType):
    """automodule shows the functions and classes of __all__ that have a docstring; anything else needs a directive of its own."""
    pages = "\n".join(path.read_text() for path in (ROOT / "docs" / "api").glob("*.rst"))
    assert f".. automodule:: {module.__name__}\n" in pages
    for name in module.__all__:
        found = getattr(module, name)
        if inspect.isclass(found) or inspect.isfunction(found):
            assert found.__doc__, f"{name} has no docstring"
        elif not inspect.ismodule(found):
            assert f".. autodata:: {module.__name__}.{name}\n" in pages


@pytest.mark.parametrize("name", [*FUNCTIONS, *(loss.__name__ for loss in LOSSES)])
def test_every_loss_is_on_a_page_of_the_losses(name):
    pages = "\n".join(path.read_text() for path in (ROOT / "docs" / "losses").glob("*.md"))
    assert re.search(rf"\b{name}\b", pages)


def test_what_pages_link_to_in_the_api_exists():
    pages = [*(ROOT / "docs").rglob("*.md"), ROOT / "README.md"]
    link = re.compile(r"\[`(\w+)`\]\([./]*api/(varloss|functional|metrics|distributed)\.rst\)")
    links = {found for page in pages for found in link.findall(page.read_text())}
    assert len(links) > 20
    modules = {"varloss": varloss, "functional": functional, "metrics": metrics, "distributed": distributed}
    assert [name for name, page in links if name not in modules[page].__all__] == []


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_every_public_callable_has_an_example_that_runs(module: ModuleType):
    """In its own docstring, complete in itself."""
    named = {name: getattr(module, name) for name in module.__all__}
    callables = {name: found for name, found in named.items() if inspect.isclass(found) or inspect.isfunction(found)}
    assert len(callables) > 5
    parser, runner = doctest.DocTestParser(), doctest.DocTestRunner()
    for name, found in callables.items():
        text = inspect.cleandoc(found.__doc__ or "")
        assert text.count("\nExample:\n") == 1, f"{name} has no example, or several"
        example = parser.get_doctest(text[text.index("\nExample:\n") :], {}, name, None, None)
        assert len(example.examples) >= 2, name
        assert runner.run(example).failed == 0, name


def test_public_names_beside_the_losses_are_few():
    """A new loss adds its function and its module; every other public name has to be worth learning."""
    names = {name for module in MODULES for name in module.__all__}
    losses = {*FUNCTIONS, *(loss.__name__ for loss in LOSSES)}
    assert len(names - losses) <= MOST_NAMES_BESIDE_THE_LOSSES
