"""The check before a release goes red on every mismatch it is there for."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / ".github" / "check_release.py"


def load():
    spec = importlib.util.spec_from_file_location("check_release", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


check_release = load()


@pytest.fixture
def release(tmp_path):
    """A checkout of which 1.2.3 can be released."""
    for name, text in {
        "pyproject.toml": '[project]\nname = "varloss"\nversion = "1.2.3"\n',
        "varloss/__init__.py": '__version__ = "1.2.3"\n',
        "CITATION.cff": "cff-version: 1.2.0\nversion: 1.2.3\ndate-released: 2027-01-02\n",
        "CHANGELOG.md": (
            "# Changelog\n\n## [Unreleased]\n\n## [1.2.3] - 2027-01-02\n\n### Added\n\n- This.\n\n"
            "## [1.2.2] - 2026-12-01\n\n- That.\n"
        ),
    }.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_nothing_stands_against_a_release_that_agrees(release):
    assert check_release.problems(release, "v1.2.3") == []
    assert check_release.problems(release, None) == []


@pytest.mark.parametrize("tag", ["v1.2.4", "1.2.3", "v1.2.3rc1", "release-1.2.3", ""])
def test_sees_another_tag(release, tag):
    assert check_release.problems(release, tag) == [
        f"tag {tag} does not name the version in pyproject.toml: v1.2.3 would."
    ]


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("pyproject.toml", "1.2.3", "1.2.4", "tag v1.2.3 does not name the version in pyproject.toml: v1.2.4"),
        ("varloss/__init__.py", "1.2.3", "1.2.2", "varloss/__init__.py says 1.2.2, pyproject.toml 1.2.3"),
        ("CITATION.cff", "version: 1.2.3", "version: 1.2.2", "CITATION.cff says 1.2.2"),
        ("CITATION.cff", "2027-01-02", "2027-01-03", "CHANGELOG.md dates 1.2.3 2027-01-02, CITATION.cff 2027-01-03"),
        ("CHANGELOG.md", "## [1.2.3] - 2027-01-02\n", "", "still has entries under [Unreleased]"),
        ("CHANGELOG.md", "## [1.2.3] - 2027-01-02\n", "", "newest section is 1.2.2, not 1.2.3"),
        ("CHANGELOG.md", "[Unreleased]\n", "[Unreleased]\n\n- More.\n", "move them to [1.2.3]"),
        ("CHANGELOG.md", " - 2027-01-02", "", "CHANGELOG.md dates 1.2.3 None"),
        ("CHANGELOG.md", "### Added\n\n- This.\n\n", "", "says nothing about 1.2.3"),
    ],
)
def test_sees_what_differs(release, name, old, new, message):
    path = release / name
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    assert any(message in problem for problem in check_release.problems(release, "v1.2.3"))


def test_a_file_without_a_version_is_named(release):
    (release / "CITATION.cff").write_text("cff-version: 1.2.0\n")
    with pytest.raises(SystemExit, match=r"CITATION.cff: nothing matches"):
        check_release.problems(release, "v1.2.3")


def test_this_checkout_agrees_with_itself():
    """As a program, and red with a tag of another version; notes are the section of the changelog."""
    version = check_release.one(r'^version = "([^"]+)"', ROOT / "pyproject.toml")
    plain = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, check=False)
    assert plain.returncode == 0, plain.stderr
    assert plain.stdout.strip()
    wrong = subprocess.run([sys.executable, str(SCRIPT), f"v{version}.1"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 1
    assert f"tag v{version}.1 does not name" in wrong.stderr


def test_a_checkout_is_not_taken_for_a_wheel(tmp_path):
    """test_wheel.py refuses to test sources: the copy beside it holds a varloss."""
    (tmp_path / ".github").mkdir()
    (tmp_path / "tests").mkdir()
    (tmp_path / "varloss").mkdir()
    shutil.copy(ROOT / ".github" / "test_wheel.py", tmp_path / ".github")
    (tmp_path / "pyproject.toml").write_text("")
    (tmp_path / "varloss" / "__init__.py").write_text('__version__ = "0"\n')
    result = subprocess.run(
        [sys.executable, str(tmp_path / ".github" / "test_wheel.py")],
        env={"PYTHONPATH": str(tmp_path), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2, result.stdout + result.stderr
    assert "not an installed wheel" in result.stderr
