"""Recipes are whole and say what is the paper's; what is shipped for Accelerate is what Accelerate reads."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest
from accelerate.commands import launch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DeepSpeedPlugin, DistributedType, FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from torch import nn

from echo_ska.models import PRESETS, EchoConfig, EchoForCausalLM
from echo_ska.models.presets import count_parameters
from echo_ska.training import ScaleConfig, TrainingConfig, recipes
from echo_ska.training.recipes import ACCELERATE_FILES, RECIPES, Recipe, accelerate_file, find_recipe

CHECKOUT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_whole(name):
    recipe = find_recipe(name)
    assert recipe.name == name
    assert recipe.model in PRESETS
    assert recipe.summary.endswith(".")
    assert recipe.ours
    config = recipe.model_config()
    assert config.vocab_size == recipe.vocab_size
    assert recipe.tokens == recipe.training.steps * recipe.batch_size * recipe.length
    # The command's own settings: what cannot be asked of it, a recipe must not promise.
    options = recipe.train_options()
    asked = {field: options[field] for field in ("steps", "learning_rate", "precision", "checkpoint_every")}
    assert TrainingConfig(**asked) == recipe.training


def test_the_paper_s_schedule():
    for name in ("echo-50m", "echo-180m"):
        recipe = RECIPES[name]
        assert (recipe.training.steps, recipe.batch_size, recipe.length) == (50_000, 96, 2048)
        assert recipe.tokens == 9_830_400_000
        assert recipe.training.precision == "bf16"
        assert "50,000 steps of 96 sequences of 2,048 tokens" in recipe.from_the_paper
    assert not RECIPES["echo-1b"].from_the_paper
    assert 20 <= RECIPES["echo-1b"].tokens / count_parameters(RECIPES["echo-1b"].model_config()) <= 22


@pytest.mark.parametrize("name", RECIPES)
def test_what_is_learnt_for_days_is_guarded_against_spikes(name):
    recipe = RECIPES[name]
    assert (recipe.spike_factor is not None) == bool(recipe.corpus)
    assert ScaleConfig(**recipe.scale_options()).spike_factor == recipe.spike_factor


@pytest.mark.parametrize("name", ["echo-50m", "echo-180m"])
def test_what_stands_in_the_place_of_zero_1_is_what_the_command_does(name):
    recipe = RECIPES[name]
    assert recipe.strategy == "ddp"
    assert "ZeRO-1, instead of which we take ddp" in recipe.from_the_paper
    assert "ddp" in recipe.ours
    assert "--strategy deepspeed" in recipe.ours
    assert "--strategy ddp" in " ".join(recipe.commands()[-1])


def test_rates_fall_as_the_width_grows():
    for name in ("echo-50m", "echo-180m", "echo-1b"):
        recipe = RECIPES[name]
        by_width = RECIPES["echo-books"].training.learning_rate * 128 / recipe.model_config().hidden_size
        assert recipe.training.learning_rate == pytest.approx(by_width, rel=0.15)


def test_the_table_says_what_the_recipes_are():
    rows = [row.strip("| ").split(" | ") for row in recipes.__doc__.splitlines() if row.startswith("| echo")]
    assert [row[0] for row in rows] == list(RECIPES)
    for name, model, schedule, tokens, rate, _ in rows:
        recipe = RECIPES[name]
        assert model == recipe.model
        numbers = [int(number.replace(",", "")) for number in schedule.split(" x ")]
        assert numbers == [recipe.training.steps, recipe.batch_size, recipe.length]
        amount, unit = tokens.split()
        assert float(amount) == pytest.approx(recipe.tokens / {"M": 1e6, "G": 1e9}[unit], rel=0.03)
        assert float(rate) == recipe.training.learning_rate


def test_echo_books_is_the_checkpoint_s_run():
    record = json.loads((CHECKOUT / "checkpoints" / "echo-books" / "record.json").read_text(encoding="utf-8"))
    recipe = RECIPES["echo-books"]
    assert TrainingConfig(**record["configuration"]["training"]) == recipe.training
    data = record["configuration"]["data"]
    assert (data["batch_size"], data["length"]) == (recipe.batch_size, recipe.length)
    assert record["figures"]["parameters"] == count_parameters(recipe.model_config())
    (command,) = recipe.commands()
    assert command[:8] == ["echo-ska", "train", "--text", "TRAIN/", "--text", "TEST/", "--held-out", "TEST/"]


def test_commands_name_all_that_is_not_a_default():
    prepare, train = RECIPES["echo-1b"].commands("tokenizers/web")
    assert (prepare[-1], train[-1]) == (
        "corpora/fineweb-edu-sample-100BT",
        "runs/echo-1b",
    )  # as all examples in the docs
    assert prepare[3:6] == ["hub:HuggingFaceFW/fineweb-edu:sample-100BT", "--tokenizer", "tokenizers/web"]
    assert train[:5] == ["torchrun", "--standalone", "--nproc-per-node=8", "--no-python", "echo-ska"]
    assert train[train.index("--data") + 1] == prepare[-1]
    said = " ".join(train)
    scale = ("--strategy fsdp", "--accumulate 4", "--checkpoint-activations", "--spike-factor 2.0")
    for words in (*scale, "--learning-rate 0.00025"):
        assert words in said
    assert "--compile" not in said
    assert RECIPES["echo-50m"].scale_options() == {"strategy": "ddp", "spike_factor": 2.0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"corpus": "hub:x"}, "must learn either text or a corpus"),
        ({"text": ()}, "must learn either text or a corpus"),
        ({"processes": 3}, "16 sequences cannot be shared out evenly over 3 processes of 1 pieces"),
        ({"accumulate": 32}, "over 1 processes of 32 pieces"),
    ],
)
def test_what_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(RECIPES["echo-books"], **changes)
    with pytest.raises(ValueError, match="no recipe 'echo-2b': choose from echo-novel, "):
        find_recipe("echo-2b")
    with pytest.raises(ValueError, match="no configuration 'zero': choose from deepspeed-zero1, fsdp2"):
        accelerate_file("zero")


def test_the_shipped_novel_is_there():
    assert all(os.path.isfile(path) for path in RECIPES["echo-novel"].text)
    assert isinstance(RECIPES["echo-novel"], Recipe)


@pytest.fixture
def launched(monkeypatch):
    """What `accelerate launch --config_file` would start processes with: its arguments, in the environment."""

    def launched(name):
        arguments = ["--config_file", str(accelerate_file(name)), "script.py"]
        args, defaults, mixed_precision_by_file = launch._validate_launch_command(
            launch.launch_command_parser().parse_args(arguments)
        )
        assert mixed_precision_by_file
        args.deepspeed_fields_from_accelerate_config = ",".join([*defaults.deepspeed_config, "mixed_precision"])
        environment = prepare_deepspeed_cmd_env(args)[1] if args.use_deepspeed else prepare_multi_gpu_env(args)
        for key, value in environment.items():
            if key.startswith(("ACCELERATE_", "FSDP_")):
                monkeypatch.setenv(key, value)
        return args

    return launched


@pytest.mark.parametrize("name", ACCELERATE_FILES)
def test_accelerate_reads_what_is_shipped(name, launched):
    config = load_config_from_file(str(accelerate_file(name)))  # refuses keys that it does not know
    kind = {"deepspeed-zero1": DistributedType.DEEPSPEED, "fsdp2": DistributedType.FSDP}[name]
    assert config.distributed_type == kind
    args = launched(name)
    assert (args.num_processes, args.mixed_precision) == (RECIPES["echo-180m"].processes, "bf16")
    known = set(vars(launch.launch_command_parser().parse_args(["script.py"])))
    assert set(config.fsdp_config) | set(config.deepspeed_config) <= known


def test_deepspeed_shares_the_moments_and_clips_as_the_recipes_do(launched):
    launched("deepspeed-zero1")
    plugin = DeepSpeedPlugin()
    assert plugin.zero_stage == 1
    assert plugin.deepspeed_config["zero_optimization"]["stage"] == 1
    assert plugin.gradient_clipping == RECIPES["echo-180m"].training.gradient_clip
    assert plugin.gradient_accumulation_steps == 1  # the loop takes its pieces itself


def test_fsdp2_wraps_the_blocks_of_our_models(launched):
    launched("fsdp2")
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    model = EchoForCausalLM(EchoConfig(hidden_size=16, num_hidden_layers=3, num_heads=2, rank=4, ska_layers=[1]))
    plugin.set_auto_wrap_policy(model)
    wrapped = [m for m in model.modules() if plugin.auto_wrap_policy(module=m, recurse=False, nonwrapped_numel=0)]
    assert wrapped == list(model.model.layers)
    assert not plugin.auto_wrap_policy(module=nn.Linear(2, 2), recurse=False, nonwrapped_numel=0)
