"""Checks that a tag, the package's version, the changelog and the citation say the same; prints the release's notes.

    python .github/check_release.py v0.2.0
    python .github/check_release.py            # without a tag: the rest of it, for a rehearsal

Standard library only. Exit status 1, with one line for each thing that differs.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

HEADING = re.compile(r"^## \[(?P<version>[^\]]+)\](?: - (?P<date>\d{4}-\d{2}-\d{2}))?[ \t]*$", flags=re.MULTILINE)


def one(pattern: str, path: Path) -> str:
    """The group of the first match in a file."""
    match = re.search(pattern, path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    if match is None:
        raise SystemExit(f"{path}: nothing matches {pattern!r}")
    return match[1]


def sections(changelog: str) -> list[tuple[str, str | None, str]]:
    """(version, date, text) of each section, in the order of the file."""
    headings = list(HEADING.finditer(changelog))
    ends = [heading.start() for heading in headings[1:]] + [len(changelog)]
    return [
        (heading["version"], heading["date"], changelog[heading.end() : end].strip())
        for heading, end in zip(headings, ends, strict=True)
    ]


def problems(root: Path, tag: str | None) -> list[str]:
    """What stands against releasing the checkout at ``root`` under this tag."""
    version = one(r'^version = "([^"]+)"', root / "pyproject.toml")
    found = []
    if tag is not None and tag != f"v{version}":
        found.append(f"tag {tag} does not name the version in pyproject.toml: v{version} would.")
    for path, pattern in (
        ("varloss/__init__.py", r'^__version__ = "([^"]+)"'),
        ("CITATION.cff", r"^version: [\"']?([^\"'\s]+)"),
    ):
        other = one(pattern, root / path)
        if other != version:
            found.append(f"{path} says {other}, pyproject.toml {version}.")
    changes = sections((root / "CHANGELOG.md").read_text(encoding="utf-8"))
    released = [section for section in changes if section[0] != "Unreleased"]
    if tag is not None and any(name == "Unreleased" and text for name, _, text in changes):
        found.append(f"CHANGELOG.md still has entries under [Unreleased]: move them to [{version}].")
    if not released or released[0][0] != version:
        newest = released[0][0] if released else "no version"
        found.append(f"CHANGELOG.md's newest section is {newest}, not {version}.")
    else:
        date = one(r"^date-released: [\"']?([^\"'\s]+)", root / "CITATION.cff")
        if released[0][1] != date:
            found.append(f"CHANGELOG.md dates {version} {released[0][1]}, CITATION.cff {date}.")
        if not released[0][2]:
            found.append(f"CHANGELOG.md says nothing about {version}.")
    return found


def main(arguments: list[str]) -> int:
    """Entry point; returns the exit status."""
    if len(arguments) > 1:
        print(__doc__, file=sys.stderr)
        return 2
    root = Path(__file__).parent.parent
    found = problems(root, arguments[0] if arguments else None)
    if found:
        print("\n".join(found), file=sys.stderr)
        return 1
    newest = next(
        text for name, _, text in sections((root / "CHANGELOG.md").read_text(encoding="utf-8")) if name != "Unreleased"
    )
    print(newest)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
