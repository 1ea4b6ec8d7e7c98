"""`varloss-bench report`: its files, its exit status, and the page itself."""

from html.parser import HTMLParser

import pytest
from support.sweeps import ENVIRONMENT, GRID, SMALL, report, visible

from varloss_bench.config import Arm, TrialConfig
from varloss_bench.report.groups import read
from varloss_bench.report.sections import sections


class Page(HTMLParser):
    """Tags, attributes and text of a page; opening and closing tags must match."""

    VOID = frozenset({"meta", "link", "br", "img", "hr", "input", "image", "use", "path"})

    def __init__(self, text):
        super().__init__()
        self.tags, self.references, self.open = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.references += [value for name, value in attributes if name in ("src", "href", "xlink:href", "srcset")]
        assert not any(name.startswith("on") for name, _ in attributes)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_writes_page_text_and_tables(folder):
    path = folder()
    result = report(path)
    assert result.exit_code == 0, result.output
    page = Page((path / "report.html").read_text())
    # 2 methods x 2 temperatures in 3 figures over batch size, 2 x 2 histograms, 2 x 2 losses, 2 x 2 planes
    assert page.tags.count("svg") == 12 + 4 + 4 + 4
    assert sum(tag == "table" for tag in page.tags) >= 12  # 2 methods x 2 batch sizes x 3 heat maps
    assert all(reference.startswith(("#", "data:")) for reference in page.references)
    assert "script" not in page.tags
    shown = visible(path)
    assert shown.index("Question") < shown.index("Verdict") < shown.index("Accuracy against") < shown.index("Details")
    for phrase in (
        "settled in favour of VRN",
        "equal epochs (20)",
        "Control temperatures",
        "seeds needed",
        "varloss-bench compare",
        # 2 methods x 2 batch sizes x 2 weights x 2 temperatures x (the same temperature, the control) x 5 metrics
        "The plan of these trials is not recorded here",
        "corrects over all 160 comparisons",
    ):
        assert phrase in shown
    text = (path / "report.md").read_text()
    assert "settled in favour of VRN" in text
    assert (path / "report.html").stat().st_size < 5e6


def test_groups_are_told_apart_by_what_they_differ_in(folder):
    moco = SMALL | {"methods": ["moco"]}
    for base in (TrialConfig(), TrialConfig(base_lr=0.3), TrialConfig(vrn_against="queue"), TrialConfig(epochs=7)):
        path = folder(base, **moco)
    plain, rate, queue, short = sorted(
        sections(read(path)),
        key=lambda s: ("(7)" in s.title, "queue" in s.title, "0.3" in s.title),
    )
    assert plain.title == (
        "digits, test split, equal epochs (20), 3-convolution net, base_lr 0.15, vrn_against queries"
    )
    assert rate.title == plain.title.replace("0.15", "0.3")
    assert queue.title == plain.title.replace("queries", "queue")
    assert short.title == plain.title.replace("(20)", "(7)")
    assert ("base_lr", "0.3") in rate.asked
    assert ("vrn_against", "queue") in queue.asked
    (alone,) = sections(read(folder(into=path / "other", **moco)))
    assert "base_lr" not in alone.title + str(alone.asked)


def test_numbers_of_things_are_grammar(folder):
    failing = {Arm("simclr", 16, 0.5, 3.0): {"collapsed": True}, Arm("simclr", 16, 0.2, 3.0): {"status": "diverged"},
               Arm("simclr", 16, 0.5, 1.0): {"status": "diverged"}}  # fmt: skip
    path = folder(**GRID, changes=lambda config: failing.get(config.arm, {}))
    (section,) = sections(read(path))
    endings = [
        line.split("excluded from comparisons")[1] for line in section.verdict if "excluded from comparisons" in line
    ]
    assert sorted(endings) == [": 1 arm.", ": 2 arms."]


@pytest.mark.parametrize("make", [lambda path: path / "absent", lambda path: path])
def test_nothing_to_report_is_an_error(tmp_path, make):
    result = report(make(tmp_path))
    assert result.exit_code == 2
    assert "error: " in result.output
    assert not list(tmp_path.iterdir())


def test_only_crashed_trials_are_said_to_be_so(folder):
    crash = {"status": "crashed", "reason": "RuntimeError: out of memory", "metrics": {}}
    path = folder(**SMALL | {"seeds": [0]}, changes=lambda config: crash)
    result = report(path)
    assert result.exit_code == 1
    assert "all of them crashed" in result.output
    assert "No trial has a result: 4 trials crashed" in visible(path)
    assert "out of memory" in visible(path)


def test_only_corrupt_records_are_not_said_to_have_crashed(folder):
    path = folder(**SMALL | {"seeds": [0]})
    for file in (path / "trials").iterdir():
        file.write_text("{")
    result = report(path)
    assert result.exit_code == 1
    assert "there is no readable record" in result.output
    assert "crashed" not in result.output


HOSTILE = "</td><script>alert(1)</script><img src=x onerror=alert(2)>|$\\frac$&"


def test_nothing_out_of_a_record_becomes_markup(folder):
    def hostile(config):
        environment = {**ENVIRONMENT, "machine": {HOSTILE: HOSTILE}, "versions": {"torch": HOSTILE}}
        return {
            "reason": HOSTILE, "command": [HOSTILE], "environment": environment, "confounds": {HOSTILE: HOSTILE},
            **({"status": "crashed"} if config.seed == 1 and config.weight == 3 else {}),
        }  # fmt: skip

    base = TrialConfig(data=HOSTILE, backbone=HOSTILE, device=HOSTILE)
    path = folder(base, changes=hostile, **SMALL)
    (path / "trials" / "<img src=x onerror=alert(3)>.json").write_text("{}")
    result = report(path)
    assert result.exit_code == 0, result.output
    text = (path / "report.html").read_text()
    page = Page(text)
    assert "alert(1)" in text  # it is there, as text
    assert not {"script", "img", "iframe", "object", "link"} & set(page.tags)
    assert "Content-Security-Policy" in text
    markdown = (path / "report.md").read_text()
    assert "<script" not in markdown
    assert "<img" not in markdown


def test_output_folder_and_unwritable_output(folder, tmp_path):
    path = folder(**SMALL, into=tmp_path / "in")
    assert report(path, "--output", tmp_path / "out").exit_code == 0
    assert not (path / "report.html").exists()
    assert (tmp_path / "out" / "report.html").exists()
    (tmp_path / "file").write_text("")
    result = report(path, "--output", tmp_path / "file")
    assert result.exit_code == 2
    assert "error: " in result.output
