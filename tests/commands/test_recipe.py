"""`echo-ska recipe` at the command line."""

from __future__ import annotations

import json
import shlex

import pytest
import typer
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from echo_ska.benchmarks.cost import PEAKS
from echo_ska.cli import app
from echo_ska.commands.recipe import recipe_options
from echo_ska.training import ScaleConfig
from echo_ska.training.recipes import RECIPES

SCALE = ("strategy", "accumulate", "checkpoint_activations", "compile", "spike_factor")


@pytest.fixture
def tokenizer(tmp_path):
    """Makes the folder of a tokenizer of so many tokens."""

    def tokenizer(size):
        words = Tokenizer(WordLevel({"<end>": 0} | {f"w{number}": number for number in range(1, size)}, "<end>"))
        folder = tmp_path / f"tokenizer of {size}"
        PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>").save_pretrained(folder)
        return folder

    return tokenizer


def test_all_recipes_are_listed(run, tmp_path):
    result = run("recipe", "list", "--json", tmp_path / "recipes.json")
    assert result.exit_code == 0, result.output
    listed = json.loads((tmp_path / "recipes.json").read_text())["recipes"]
    assert [entry["name"] for entry in listed] == list(RECIPES)
    for entry in listed:
        assert entry["name"] in result.stdout
        assert f"{entry['parameters']:,}" in result.stdout
        assert entry["flops"] > 6 * entry["parameters"] * entry["tokens"]


@pytest.mark.parametrize("name", RECIPES)
def test_one_is_shown_with_cost_and_commands(name, run, tokenizer, tmp_path):
    recipe = RECIPES[name]
    named = ["--tokenizer", tokenizer(recipe.vocab_size)] if recipe.corpus else []
    result = run("recipe", "show", name, *named, "--json", tmp_path / "recipe.json")
    assert result.exit_code == 0, result.output
    assert "TOKENIZER" not in result.stdout
    for command in recipe.commands(*map(str, named[1:])):
        assert shlex.join(command) in result.stdout
    assert f"{recipe.tokens:,} tokens" in result.stdout
    assert ("The paper's: " in result.stdout) == bool(recipe.from_the_paper)
    assert ("stops at a loss above 2 times the mean of the 100 before" in result.stdout) == bool(recipe.corpus)
    assert ("an assumption" in result.stdout) == bool(recipe.corpus)
    shown = json.loads((tmp_path / "recipe.json").read_text())
    assert shown["utilisation_assumed"] == 0.3
    for gpu, hours in shown["hours_on_one"].items():
        assert hours == pytest.approx(shown["flops"] / (0.3 * PEAKS[gpu]) / 3600)
        assert (f"{hours:,.1f}" in result.stdout) or not recipe.corpus


def test_hours_follow_the_assumption(run, tmp_path):
    hours = []
    for share in (0.2, 0.4):
        run("recipe", "show", "echo-50m", "--utilisation", share, "--json", tmp_path / "recipe.json")
        hours.append(json.loads((tmp_path / "recipe.json").read_text())["hours_on_one"]["A100"])
    assert hours[0] == pytest.approx(2 * hours[1])


def understood(command):
    """What the command line makes of the words of a command, by the names of its parameters."""
    words = command[command.index("echo-ska") + 1 :]
    parser = typer.main.get_command(app)
    for place, word in enumerate(words):
        parser = parser.commands[word]
        if not hasattr(parser, "commands"):
            return parser.make_context(word, list(words[place + 1 :])).params
    raise AssertionError(f"no command in {words}")


@pytest.mark.parametrize("name", RECIPES)
def test_a_printed_command_is_one_that_the_command_line_takes(name):
    recipe = RECIPES[name]
    *prepare, train = recipe.commands("tokenizers/mine")
    given = understood(train)
    options = recipe.train_options() | recipe.scale_options()
    assert {option: given[option] for option in options} == options
    scale = ScaleConfig(**{option: given[option] for option in SCALE})
    assert (scale.strategy, scale.spike_factor) == (recipe.strategy, recipe.spike_factor)
    assert tuple(given["text"] or ()) == recipe.text
    assert (given["data"] is not None) == bool(recipe.corpus)
    for command in prepare:
        prepared = understood(command)
        assert list(prepared["sources"]) == [recipe.corpus]
        assert (prepared["tokenizer"], prepared["output"]) == ("tokenizers/mine", given["data"])


@pytest.mark.parametrize("name", RECIPES)
def test_train_takes_from_a_recipe_what_is_not_given(name):
    recipe = RECIPES[name]
    options = recipe_options(name, {"data", "steps", "compile"})
    expected = recipe.train_options() | recipe.scale_options()
    assert options == {option: value for option, value in expected.items() if option not in ("steps", "compile")}


def test_what_cannot_be_is_one_sentence(refused):
    refused("no recipe 'nope': choose from echo-novel", "recipe", "show", "nope")
    refused(
        "--utilisation must be above 0 and at most 1, got 30.0", "recipe", "show", "echo-50m", "--utilisation", "30"
    )


def test_a_tokenizer_that_the_printed_commands_could_not_use_is_refused(refused, run, tokenizer, tmp_path):
    show = ("recipe", "show", "echo-50m", "--tokenizer")
    assert "TOKENIZER is the folder of a Hugging Face tokenizer of 32,000 tokens" in run(*show[:-1]).stdout
    remedy = "name the folder of one of 32,000 tokens (`echo-ska tokenizer train TEXT --vocab-size 32000 -o FOLDER`"
    refused(f"--tokenizer {tmp_path / 'absent'} is no folder: {remedy}", *show, tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    refused(f"{tmp_path / 'empty'} holds no tokenizer (tokenizer.json)", *show, tmp_path / "empty")
    small = tokenizer(100)
    refused(f"{small} has 100 token ids and the recipe echo-50m is of 32,000: {remedy}", *show, small)
    refused("--tokenizer bytes has 256 token ids", *show, "bytes")
    (small / "tokenizer.json").write_text("{")
    refused(f"The tokenizer in {small} cannot be read", *show, small)
    refused("--tokenizer is for recipes of a corpus: echo-novel learns bytes", *show[:2], "echo-novel", "--tokenizer=x")


@pytest.mark.parametrize("utilisation", ["0", "1.5", "nan"])
def test_a_utilisation_out_of_range_is_named(refused, utilisation):
    refused("--utilisation must be above 0", "recipe", "show", "echo-50m", "--utilisation", utilisation)
