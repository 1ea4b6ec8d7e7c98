"""Every public loss inside everything that torch does to it: right, or, in the few places named, an error that says what to do."""

from __future__ import annotations

import inspect
import multiprocessing
from collections.abc import Iterator

import pytest
from support.conformance import page, record
from support.conformance.grid import MECHANISMS, Mechanism, outcome
from support.conformance.known import KNOWN
from support.conformance.mechanisms.environment import stop_child
from support.conformance.subject import Subject
from torch import nn

import varloss
import varloss_lightly
import varloss_metric_learning
from varloss import functional

HEADER, RECORDED = record.read()


def cells() -> Iterator[object]:
    for mechanism, subject in record.all_cells():
        marks = []
        if mechanism.slowest or not subject.is_ours or (mechanism.slow and not subject.representative):
            marks.append(pytest.mark.exhaustive)
        if reason := KNOWN.get((mechanism.name, subject.name)):
            marks.append(pytest.mark.xfail(reason=reason, strict=True))
        if mechanism.name == "spawned":
            marks.append(pytest.mark.xdist_group("spawned"))
        yield pytest.param(mechanism, subject, id=f"{mechanism.name}-{subject.name}", marks=marks)


@pytest.mark.parametrize(("mechanism", "subject"), [*cells()])
def test_cell(mechanism: Mechanism, subject: Subject) -> None:
    found = outcome(mechanism, subject)
    if subject.is_ours:
        assert found.state != "red", f"{subject.name}: {mechanism.label}: {found.kind}: {found.what}"
    if HEADER.startswith(f"{record.versions()};"):
        assert str(found) == RECORDED[mechanism.name, subject.name], record.__doc__
    if found.state == "not run":
        pytest.skip(found.kind)


@pytest.mark.xdist_group("spawned")
def test_the_process_of_the_spawned_cells_ends():
    """After them, in their worker: tests of the bench look at the children of their process."""
    stop_child()
    assert not multiprocessing.active_children()


def test_record_has_every_cell_and_no_other():
    assert RECORDED.keys() == {(mechanism.name, subject.name) for mechanism, subject in record.all_cells()}


def test_page_shows_the_record():
    """``PYTHONPATH=tests python -m support.conformance`` measures and writes both."""
    assert page.MARKED.findall(page.PAGE.read_text(encoding="utf-8")) == [page.tables(HEADER, RECORDED)]


def test_red_cells_are_few_and_known():
    red = {cell for cell, found in RECORDED.items() if found.startswith("red")}
    ours = {name for name, subject in record.all_subjects().items() if subject.is_ours}
    assert {cell for cell in red if cell[1] in ours} == KNOWN.keys()
    assert len(KNOWN) <= 0.03 * sum(name in ours for _, name in RECORDED)


def test_errors_are_allowed_for_few_mechanisms():
    """Forward-mode AD, torch.func, export, tracing, and rows that no loss can take."""
    assert {mechanism.group for mechanism in MECHANISMS.values() if mechanism.may_refuse} == {
        "Derivatives and transforms",
        "Rows that no loss can take",
    }
    for name in ("double_backward", "double_backward_by_parameters"):
        assert not MECHANISMS[name].may_refuse


def modules_of(package: object) -> list[type[nn.Module]]:
    named = (getattr(package, name) for name in package.__all__)  # type: ignore[attr-defined]
    return [found for found in named if inspect.isclass(found) and issubclass(found, nn.Module)]


@pytest.mark.parametrize("package", [varloss, varloss_lightly, varloss_metric_learning], ids=lambda p: p.__name__)
def test_every_public_module_is_a_subject(package: object) -> None:
    """A new loss is one entry in tests/support/conformance/subjects.py."""
    kinds = {type(subject.example) for subject in record.all_subjects().values()}
    assert modules_of(package)
    assert [kind.__name__ for kind in modules_of(package) if kind not in kinds] == []


def test_every_public_function_is_a_subject():
    """By itself, or as the function of a module that is one."""
    found = {name for subject in record.all_subjects().values() for name in subject.functions}
    for subject in record.all_subjects().values():
        function = getattr(type(subject.example), "_function", None)
        found |= {function.__name__} if function else set()
    functions = {name for name in functional.__all__ if inspect.isfunction(getattr(functional, name))}
    assert functions - found == set()
