"""docs/solo-learn.md shows commands that Hydra takes, and says what it does not take."""

import re

import pytest
from hydra._internal.utils import get_args_parser
from support.solo.page import PAGE, on_the_page


def in_the_text():
    """Commands in tables and sentences."""
    return [found.split() for found in re.findall(r"`(python main_pretrain\.py [^`]+)`", PAGE.read_text())]


def test_every_command_is_one_that_hydra_takes():
    commands = [*on_the_page(), *in_the_text()]
    assert len(commands) >= 5
    assert sum("-m" in words for words in commands) == 2
    for words in commands:
        get_args_parser().parse_args(words[2:])


@pytest.mark.parametrize(
    "words", [["a=1", "-m", "+varloss=vrn"], ["a=1", "--config-name", "x.yaml", "+varloss=vrn"]], ids=" ".join
)
def test_the_forms_that_the_page_warns_of_are_refused_by_hydra(words, capsys):
    with pytest.raises(SystemExit):
        get_args_parser().parse_args(words)
    assert "unrecognized arguments: +varloss=vrn" in capsys.readouterr().err
    assert "unrecognized arguments: +varloss=vrn" in PAGE.read_text()


def test_the_page_says_which_scripts_need_a_gpu():
    assert "main_knn.py and main_umap.py need a GPU" in PAGE.read_text()
