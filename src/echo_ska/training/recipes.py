"""Recipes: trainings by name, as typed values. What is the paper's in them and what is ours stands beside each.

| recipe | model | steps x sequences x tokens | tokens | peak learning rate | learns |
|---|---|---|---|---|---|
| echo-novel | echo-1m | 500 x 16 x 256 | 2.0 M | 4e-3 | the novel that the package ships, byte by byte |
| echo-books | echo-1m | 2,400 x 16 x 512 | 19.7 M | 4e-3 | novels of your own, byte by byte |
| echo-50m | echo-50m | 50,000 x 96 x 2,048 | 9.83 G | 1e-3 | FineWeb-Edu |
| echo-180m | echo-180m | 50,000 x 96 x 2,048 | 9.83 G | 6e-4 | FineWeb-Edu |
| echo-1b | echo-1b | 40,000 x 256 x 2,048 | 21.0 G | 2.5e-4 | FineWeb-Edu |

echo-books is the run of checkpoints/echo-books. The paper (arXiv 2605.06997) states for its large models: FineWeb-Edu,
50,000 steps of 96 sequences of 2,048 tokens, bfloat16, ZeRO-1. In the place of ZeRO-1 our recipes on
its schedule take ddp: steps are the same up to rounding, and no DeepSpeed is needed (with it, `--strategy deepspeed` is
ZeRO-1). All else is ours: AdamW's settings, which are those of every training here (`TrainingConfig`), and the learning
rates: echo-books' 4e-3 at a width of 128, divided as the width grows, as Adam's rate for hidden matrices should be
(Yang et al., arXiv 2203.03466). Nobody has run the large ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from echo_ska.models import EchoConfig
from echo_ska.models.presets import preset
from echo_ska.training.books import BOOKS
from echo_ska.training.config import TrainingConfig
from echo_ska.training.scale import ScaleConfig
from echo_ska.training.text import VOCAB_SIZE

ACCELERATE_FILES = ("deepspeed-zero1", "fsdp2")
"""Configurations in `echo_ska/data/accelerate`, for `accelerate launch --config_file`."""

CORPORA, RUNS = "corpora", "runs"
"""Folders that the printed commands write to: into one of the corpus's name, and one of the recipe's."""


@dataclass(frozen=True)
class Recipe:
    """A training, whole: the model, the schedule, the data, and how it is spread over GPUs.

    Attributes:
        name: its key in `RECIPES`.
        summary: what it is, one sentence.
        model: a name of `PRESETS`.
        training: steps, learning rate, precision and so on.
        batch_size: sequences in a step, of all processes together.
        length: tokens in a sequence.
        text: files or folders to learn byte by byte, as `echo-ska train --text` takes them; or none.
        held_out: those of them to hold out; none leaves the choice to the command.
        corpus: a source for `echo-ska data prepare`, learnt through a tokenizer; "" where `text` is learnt.
        vocab_size: token ids, of which the corpus's tokenizer must have as many (`echo-ska train` refuses another); 256
            for bytes.
        processes: GPUs it is meant for; 1 is also a CPU.
        strategy: what processes share: "auto", "ddp", "fsdp" or "deepspeed".
        accumulate: pieces in which a process takes its part of a batch.
        checkpoint_activations: keep each block's input alone for the backward pass.
        compile: compile the model.
        spike_factor: stop at a loss above so many times the mean of those before; see `ScaleConfig`.
        from_the_paper: which of these the paper states, in words.
        ours: what else was chosen, and why, in words.

    Raises:
        ValueError: the batch cannot be shared out evenly, or neither or both of `text` and `corpus` are given.
    """

    name: str
    summary: str
    model: str
    training: TrainingConfig
    batch_size: int
    length: int
    text: tuple[str, ...] = ()
    held_out: tuple[str, ...] = ()
    corpus: str = ""
    vocab_size: int = VOCAB_SIZE
    processes: int = 1
    strategy: str = "auto"
    accumulate: int = 1
    checkpoint_activations: bool = False
    compile: bool = False
    spike_factor: float | None = None
    from_the_paper: str = ""
    ours: str = ""

    def __post_init__(self) -> None:
        if bool(self.text) == bool(self.corpus):
            raise ValueError(f"The recipe {self.name} must learn either text or a corpus.")
        if self.batch_size % (self.processes * self.accumulate):
            raise ValueError(
                f"{self.batch_size} sequences cannot be shared out evenly over {self.processes} processes of "
                f"{self.accumulate} pieces each: change one of them."
            )

    @property
    def tokens(self) -> int:
        """Tokens read in training, those read twice twice."""
        return self.training.steps * self.batch_size * self.length

    def model_config(self) -> EchoConfig:
        """The architecture."""
        return preset(self.model, vocab_size=self.vocab_size)

    def train_options(self) -> dict[str, Any]:
        """What of it `echo-ska train` is told, by the names of its options in Python; all but what is learnt.

        The command's own settings make up the rest of `training`.
        """
        return {
            "model": self.model,
            "steps": self.training.steps,
            "batch_size": self.batch_size,
            "length": self.length,
            "learning_rate": self.training.learning_rate,
            "precision": self.training.precision,
            "checkpoint_every": self.training.checkpoint_every,
        }

    def scale_options(self) -> dict[str, Any]:
        """How it is carried out, by the names of the command's options; only what is not their default."""
        scale = {
            "strategy": self.strategy,
            "accumulate": self.accumulate,
            "checkpoint_activations": self.checkpoint_activations,
            "compile": self.compile,
            "spike_factor": self.spike_factor,
        }
        usual = ScaleConfig()
        return {name: value for name, value in scale.items() if value != getattr(usual, name)}

    def commands(self, tokenizer: str = "TOKENIZER") -> list[list[str]]:
        """The commands that carry it out, each as its arguments.

        Args:
            tokenizer: the folder of a Hugging Face tokenizer of `vocab_size` tokens, for a corpus.
        """
        learnt: list[str] = []
        prepare: list[list[str]] = []
        if self.corpus:
            folder = f"{CORPORA}/{self.corpus.rpartition('/')[2].replace(':', '-')}"
            asked = ["--tokenizer", tokenizer, "--max-tokens", str(self.tokens), "--output", folder]
            prepare = [["echo-ska", "data", "prepare", self.corpus, *asked]]
            learnt = ["--data", folder]
        for option, paths in (("--text", self.text), ("--held-out", self.held_out)):
            for path in paths:
                learnt += [option, path]
        options = [word for item in (self.train_options() | self.scale_options()).items() for word in _option(*item)]
        launcher = (
            []
            if self.processes == 1
            else ["torchrun", "--standalone", f"--nproc-per-node={self.processes}", "--no-python"]
        )
        train = [*launcher, "echo-ska", "train", *learnt, *options, "--output", f"{RUNS}/{self.name}"]
        return [*prepare, train]


def _option(name: str, value: Any) -> list[str]:
    option = "--" + name.replace("_", "-")
    return [option] if value is True else [option, str(value)]


def find_recipe(name: str) -> Recipe:
    """The recipe of that name; raises ValueError, naming the known ones, where there is none."""
    if name not in RECIPES:
        raise ValueError(f"There is no recipe {name!r}: choose from {', '.join(RECIPES)}.")
    return RECIPES[name]


def accelerate_file(name: str) -> Path:
    """Path of a configuration for `accelerate launch --config_file` in the installed package.

    Raises:
        ValueError: for a name that is not in `ACCELERATE_FILES`.
    """
    if name not in ACCELERATE_FILES:
        raise ValueError(f"There is no configuration {name!r}: choose from {', '.join(ACCELERATE_FILES)}.")
    # Packages are installed unzipped, so the resource is a plain file, which outlives this context.
    with as_file(files("echo_ska") / "data" / "accelerate" / f"{name}.yaml") as path:
        return path


SPIKE_FACTOR = 2.0
"""Of the recipes for a corpus. A batch of theirs averages over some 200,000 tokens or more, so a loss of twice the mean
is no matter of which batch it was. Nobody has run them: a run that was stopped for nothing goes on with a larger
factor, which checkpoints allow."""

_NOVEL = str(files("echo_ska") / "data" / "books" / BOOKS["train"])
_SCHEDULE = (
    "FineWeb-Edu; 50,000 steps of 96 sequences of 2,048 tokens; bfloat16; and ZeRO-1, instead of which we take ddp."
)
_OUR_SCHEDULE = (
    "AdamW, warm-up and cosine as in every training here; the learning rate is echo-books' 4e-3 at width 128 over the "
    "growth of the width; the tokenizer, of which the paper does not speak; the guard against spikes; and ddp, by "
    "which AdamW's moments are whole in every process: models of this size leave room for them, steps are the same up "
    "to rounding, and nothing more is to be installed. ZeRO-1 shares the moments: pip install 'echo-ska[deepspeed]', "
    "then --strategy deepspeed."
)

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "echo-novel",
            "A small Echo learns the novel that the package ships, byte by byte: minutes on a laptop.",
            model="echo-1m",
            training=TrainingConfig(steps=500, learning_rate=4e-3, checkpoint_every=100),
            batch_size=16,
            length=256,
            text=(_NOVEL,),
            ours="all of it.",
        ),
        Recipe(
            "echo-books",
            "A small Echo learns novels, byte by byte, as checkpoints/echo-books did: an hour or two on a laptop.",
            model="echo-1m",
            training=TrainingConfig(steps=2400, learning_rate=4e-3, checkpoint_every=100),
            batch_size=16,
            length=512,
            text=("TRAIN/", "TEST/"),
            held_out=("TEST/",),
            ours="all of it; TRAIN/ and TEST/ are folders of text, the checkpoint's README.md says which it had.",
        ),
        Recipe(
            "echo-50m",
            "The paper's 50M model on its schedule.",
            model="echo-50m",
            training=TrainingConfig(steps=50_000, learning_rate=1e-3, precision="bf16"),
            batch_size=96,
            length=2048,
            corpus="hub:HuggingFaceFW/fineweb-edu:sample-10BT",
            vocab_size=32_000,
            processes=8,
            strategy="ddp",
            spike_factor=SPIKE_FACTOR,
            from_the_paper=_SCHEDULE,
            ours=_OUR_SCHEDULE,
        ),
        Recipe(
            "echo-180m",
            "The paper's 180M model on its schedule.",
            model="echo-180m",
            training=TrainingConfig(steps=50_000, learning_rate=6e-4, precision="bf16"),
            batch_size=96,
            length=2048,
            corpus="hub:HuggingFaceFW/fineweb-edu:sample-10BT",
            vocab_size=32_000,
            processes=8,
            strategy="ddp",
            spike_factor=SPIKE_FACTOR,
            from_the_paper=_SCHEDULE,
            ours=_OUR_SCHEDULE,
        ),
        Recipe(
            "echo-1b",
            "A model of a thousand million parameters, which the paper does not have.",
            model="echo-1b",
            training=TrainingConfig(steps=40_000, learning_rate=2.5e-4, precision="bf16"),
            batch_size=256,
            length=2048,
            corpus="hub:HuggingFaceFW/fineweb-edu:sample-100BT",
            vocab_size=32_000,
            processes=8,
            strategy="fsdp",
            accumulate=4,
            checkpoint_activations=True,
            spike_factor=SPIKE_FACTOR,
            ours="all of it; 21 tokens a parameter, about as Hoffmann et al. (arXiv 2203.15556) have it.",
        ),
    )
}
"""By name."""
