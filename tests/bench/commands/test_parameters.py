"""Options are described once, beside the field. Help, checks, YAML and the words of a command are made from this."""

import dataclasses
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import pytest
import typer
import yaml
from typer.testing import CliRunner

import varloss_bench
from varloss_bench.cli import load
from varloss_bench.commands import config_file
from varloss_bench.commands.parameters import Without, from_fields
from varloss_bench.commands.running import Running
from varloss_bench.compare import run as compare_run
from varloss_bench.compare.options import Grid, Selection
from varloss_bench.config import TrialConfig
from varloss_bench.options import Option, Range, as_typed, check, documented, options_of, setting
from varloss_bench.tune import run as tune_run
from varloss_bench.tune.options import Search

KINDS = (TrialConfig, Grid, Selection, Search, Running)


@pytest.mark.parametrize(
    "function", [varloss_bench.compare, varloss_bench.tune, compare_run.prepare, compare_run.run, tune_run.prepare]
)
def test_functions_have_few_typed_parameters(function):
    parameters = inspect.signature(function).parameters.values()
    assert len(parameters) <= 16
    assert not [p for p in parameters if p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    assert not [p for p in parameters if p.annotation is p.empty or "dict" in str(p.annotation)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_option_has_help_and_a_default_that_it_allows(kind):
    without = {"seed", "raw_pixels_side"} if kind is TrialConfig else set()
    assert {field.name for field in dataclasses.fields(kind)} - {field.name for field, _ in options_of(kind)} == without
    for field, found in options_of(kind):
        assert found.full_help.partition(" Choices: ")[0].endswith("."), field.name
        assert found.panel, field.name
        assert f"{field.name}: {found.full_help}" in kind.__doc__
    check(as_typed(kind()))


def test_shared_options_of_the_commands_are_the_same():
    of_compare, of_tune = ({p.name: p for p in load(name).params} for name in ("compare", "tune"))
    shared = {field.name for kind in (TrialConfig, Running) for field, _ in options_of(kind)} & set(of_tune)
    assert len(shared) > 25
    # A list in compare, one value in tune.
    for name in shared - {"method", "batch_size"}:
        assert of_compare[name].help == of_tune[name].help
        assert of_compare[name].opts == of_tune[name].opts


@documented
@dataclass(frozen=True, kw_only=True)
class Toy:
    """A class of options."""

    colour: str = setting("red", Option("The colour.", "Paint", choices=("red", "blue")))
    sizes: Sequence[float] = setting(
        (1, 2.5), Option("Sizes, comma-separated.", "Paint", name="size", within=Range(above=0))
    )
    glossy: bool = setting(True, Option("The finish.", "Paint", switch=("glossy", "matt")))
    coats: int = setting(2, Option("Number of coats.", "Paint", within=Range(least=1), excludes="minutes"))
    minutes: int = setting(0, Option("Time instead.", "Paint", within=Range(least=1), excludes="coats"))
    brush: str = setting("soft", Option("The brush.", "Paint", default_by=("colour", {"red": "soft", "blue": "hard"})))
    hidden: int = setting(0, Option("Left out by the command.", "Paint"))


def paint(*words, kind=Toy):
    """The arguments that the command receives, and the result of its call."""
    got = []

    @from_fields
    def command(*, toy: Annotated[kind, Without({"hidden"})]) -> None:
        """Paint."""
        got.append(toy)

    app = typer.Typer(rich_markup_mode=None)
    app.command()(command)
    result = CliRunner().invoke(app, words, env={"COLUMNS": "200"})
    return got[0] if got else None, result


def test_a_command_gets_a_dataclass():
    assert paint()[0] == Toy()
    toy, _ = paint("--colour", "blue", "--size", "3,4", "--matt", "--minutes", "5")
    assert toy == Toy(colour="blue", sizes=(3.0, 4.0), glossy=False, coats=0, minutes=5, brush="hard")
    _, result = paint("--coats", "1", "--minutes", "5")
    assert (result.exit_code, result.output) == (2, "error: --coats and --minutes exclude each other, got 1 and 5\n")
    assert paint("--size", "x")[1].output == "error: --size takes float values separated by commas, got 'x'\n"
    assert paint("--hidden", "1")[1].exit_code == 2


def test_help_and_checks_follow_the_choices_of_the_field():
    help_of_two = paint("--help")[1].output
    assert "The colour. Choices: red, blue." in help_of_two
    assert "default: soft; hard with --colour blue" in help_of_two.replace("(", "").replace(")", "")

    @dataclass(frozen=True, kw_only=True)
    class Wider(Toy):
        colour: str = setting("red", Option("The colour.", "Paint", choices=("red", "blue", "green")))

    assert "The colour. Choices: red, blue, green." in paint("--help", kind=Wider)[1].output
    check(Wider(colour="green"))
    with pytest.raises(ValueError, match=r"^--colour must be one of red, blue, got 'green'$"):
        check(Toy(colour="green"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sizes": (1.0, 0.0)}, "--size must be greater than 0, got 0"),
        ({"sizes": (float("nan"),)}, "--size must be a finite number greater than 0, got nan"),
        ({"coats": 0}, "--coats must be at least 1, got 0"),
        ({"minutes": 3}, "--coats and --minutes exclude each other, got 2 and 3: set one to 0"),
    ],
)
def test_values_out_of_range_are_named(changes, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        check(Toy(**changes))


def test_values_from_python_get_the_types_of_their_fields():
    toy = as_typed(Toy(sizes=[1, 2]))
    assert toy.sizes == (1.0, 2.0)
    assert all(type(size) is float for size in toy.sizes)
    with pytest.raises(ValueError, match="--size takes a list of values, got 'big'"):
        as_typed(Toy(sizes="big"))
    with pytest.raises(ValueError, match="--coats takes a value of type int, got True"):
        as_typed(Toy(coats=True))
    assert as_typed(Grid(weights=[3])).weights == (3.0,)
    assert as_typed(TrialConfig(base_lr=1)).key() == TrialConfig(base_lr=1.0).key()


def test_options_in_effect_are_a_file_and_words_that_give_them_again():
    toy = Toy(colour="blue", sizes=(3.0,), glossy=False, coats=0, minutes=5, brush="hard")
    kept = yaml.safe_load(config_file.dump(toy))
    assert kept == {"colour": "blue", "size": "3", "glossy": False, "minutes": 5, "hidden": 0}
    words = config_file.command_words(toy)
    assert words == ["--colour", "blue", "--size", "3", "--matt", "--minutes", "5"]
    assert paint(*words)[0] == toy
