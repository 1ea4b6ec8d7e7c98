"""A folder with the records of a sweep."""

import pytest
from support import sweeps

from varloss_bench.report import sections


@pytest.fixture
def folder(tmp_path):
    """Writes a sweep into a folder and returns the folder; see `sweeps.write_sweep`."""

    def write(base=None, *, into=tmp_path, **options):
        sweeps.write_sweep(into, base, **options)
        return into

    return write


@pytest.fixture
def no_figures(monkeypatch):
    """Sections without figures, which take most of the time."""
    monkeypatch.setattr(sections, "figures", lambda *_: ([], []))
