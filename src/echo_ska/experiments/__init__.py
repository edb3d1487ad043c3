"""Recorded experiments, one module a table or figure, and the demo. Each appends what it measures to results/."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

if TYPE_CHECKING:
    from echo_ska.training import RunRecord


@dataclass(frozen=True)
class Experiment:
    """A recorded experiment.

    Attributes:
        description: one sentence.
        module: whose `run` runs it. Imported only then: models and matplotlib are slow to import, and a reader of
            descriptions needs neither.
        text: what is in the folder of the reader's own texts, which its `run` then takes as `text`; "" where it reads
            none.
        takes_device: whether its `run` takes the `device` that models are trained on; the others run on the CPU.
    """

    description: str
    module: str
    text: str = ""
    takes_device: bool = False

    def run(
        self,
        console: Console,
        *,
        seeds: int | None = None,
        quick: bool = False,
        text: Path | None = None,
        device: str = "cpu",
    ) -> list[RunRecord]:
        """Run what is not yet recorded, then print and draw all of it; returns the records behind it.

        Args:
            console: where to show.
            seeds: how many seeds; None is the experiment's own number.
            quick: a smaller form, recorded apart.
            text: the folder of the texts, of experiments that read text.
            device: "cpu", or "cuda" for those that train on it.

        Raises:
            ValueError: there is a `text` for an experiment that reads none, a GPU for one that takes none or where
                there is none, or what the experiment itself refuses.
        """
        if text is not None and not self.text:
            readers = ", ".join(name for name, experiment in EXPERIMENTS.items() if experiment.text)
            raise ValueError(f"This experiment reads no text of yours: leave out --text, which is for {readers}.")
        if device not in ("cpu", "cuda"):
            raise ValueError(f"device must be cpu or cuda, got {device!r}.")
        if device == "cuda" and not self.takes_device:
            trained = ", ".join(name for name, experiment in EXPERIMENTS.items() if experiment.takes_device)
            raise ValueError(f"This experiment runs on the CPU: leave out --device, which is for {trained}.")
        if device == "cuda":
            import torch

            if not torch.cuda.is_available():
                raise ValueError("device is cuda, but torch finds no GPU: leave out --device.")
        options: dict[str, Any] = ({"text": text} if self.text else {}) | (
            {"device": device} if self.takes_device else {}
        )
        records: list[RunRecord] = import_module(self.module).run(console, seeds=seeds, quick=quick, **options)
        return records


EXPERIMENTS: dict[str, Experiment] = {
    "aids": Experiment(
        "The same aids for SKA and its peers, one taken away at a time: what the solve is worth, and what they are.",
        "echo_ska.experiments.recall.aids",
        takes_device=True,
    ),
    "cliff": Experiment(
        "What moves the point where recall breaks down, a larger model or a larger state?",
        "echo_ska.experiments.recall.cliff",
    ),
    "context-parallel": Experiment(
        "One sequence over 2 and 4 processes: bytes that a layer sends, and how far results are from one's.",
        "echo_ska.experiments.state.context_parallel",
    ),
    "demo-rates": Experiment(
        "The demo's four models, and its SSM as published, at four learning rates each.",
        "echo_ska.experiments.demo.rates",
    ),
    "demo-seeds": Experiment(
        "The demo's SSM+SKA from ten seeds: accuracy at up to 1,048,576 tokens after training on 64.",
        "echo_ska.experiments.demo.seeds",
    ),
    "filter-ablation": Experiment(
        "Claim 4: the power filter, the ridge and the mask, on keys without dynamics and with.",
        "echo_ska.experiments.recall.filter_ablation",
        takes_device=True,
    ),
    "gradient-flow": Experiment(
        "Claim 11: the gradient that reaches the query through SKA and through softmax, before and after training.",
        "echo_ska.experiments.recall.gradient_flow",
    ),
    "in-context-regression": Experiment(
        "Does a trained softmax head come to predict as ridge regression does, and SKA from the start?",
        "echo_ska.experiments.regression.in_context_regression",
    ),
    "language-model": Experiment(
        "Claim 9: Echo beside seven language models of its size, in bits per byte on unseen authors; needs --text.",
        "echo_ska.experiments.language.language_model",
        text="train/, valid/ and test/ with *.txt files, and further folders to score",
        takes_device=True,
    ),
    "language-model-50m": Experiment(
        "Claim 9 at 50M parameters: the same nine, for a large GPU (--device cuda); needs --text.",
        "echo_ska.experiments.language.language_model_50m",
        text="as language-model",
        takes_device=True,
    ),
    "language-model-180m": Experiment(
        "Claim 9 at the paper's 180M parameters: the same nine, for a large GPU (--device cuda); needs --text.",
        "echo_ska.experiments.language.language_model_180m",
        text="as language-model",
        takes_device=True,
    ),
    "language-ska": Experiment(
        "What makes SKA predict text better: more ranks, in the comparison of language-model; needs --text.",
        "echo_ska.experiments.language.language_ska",
        text="as language-model",
        takes_device=True,
    ),
    "length-conditioning": Experiment(
        "Claim 5: accuracy, margin and the Gram matrix's smallest eigenvalue as the sequence grows.",
        "echo_ska.experiments.recall.length_conditioning",
    ),
    "length-generalisation": Experiment(
        "Claim 2: needles found in up to 1,048,576 tokens after training on 64, beside both controls.",
        "echo_ska.experiments.recall.length_generalisation",
        takes_device=True,
    ),
    "mqar-frontier": Experiment(
        "Zoology's recall task, reduced: accuracy against bytes of state, SKA beside all of its peers.",
        "echo_ska.experiments.recall.mqar_frontier",
        takes_device=True,
    ),
    "mqar-grid": Experiment(
        "Claim 1: the paper's grid of pairs and gaps, by models trained at its shortest gap.",
        "echo_ska.experiments.recall.mqar_grid",
        takes_device=True,
    ),
    "replace-attention": Experiment(
        "A trained Llama's attention becomes SKA and is distilled: what is lost and gained, beside the original.",
        "echo_ska.experiments.language.replace_attention",
    ),
    "transfer": Experiment(
        "Claim 3: after system prompts and tool traces, six tasks: those two, and four that training never asked.",
        "echo_ska.experiments.recall.transfer",
        takes_device=True,
    ),
    "recipe": Experiment(
        "What each part of SKA's recipe is worth: one taken away at a time, two seeds.",
        "echo_ska.experiments.demo.recipe",
    ),
    "recall-per-byte": Experiment(
        "What raises SKA's recall without a byte more of state: one change at a time, at 8 kB.",
        "echo_ska.experiments.recall.recall_per_byte",
        takes_device=True,
    ),
    "scaling": Experiment(
        "The loss on unseen text against the size of the model, and where the line points for echo-1b.",
        "echo_ska.experiments.language.scaling",
        text="train/, valid/ and test/ with *.txt files; without --text, the novels that the package ships",
        takes_device=True,
    ),
    "state-bytes": Experiment(
        "Bytes of the live state from 1k to 1M tokens against the formula and the KV cache; what 77 KB counts.",
        "echo_ska.experiments.state.state_bytes",
    ),
    "operator-error": Experiment(
        "The fitted operator against the true one, over length, noise and ridge, beside its bound.",
        "echo_ska.experiments.algebra.operator_error",
    ),
    "one-off-distractors": Experiment(
        "What the power filter does to keys that occur once: persistence against look-ahead.",
        "echo_ska.experiments.algebra.one_off_distractors",
    ),
    "recall-map": Experiment(
        "Who recalls more per byte, untrained: SKA, linear attention or DeltaNet, over load, width and kind of keys.",
        "echo_ska.experiments.algebra.recall_map",
    ),
    "state-precision": Experiment(
        "How few bits the numbers of a state may have, untrained, when the bytes go into its rank.",
        "echo_ska.experiments.algebra.state_precision",
    ),
    "trained-precision": Experiment(
        "What trained models still recall if the numbers of their state are rounded as they read.",
        "echo_ska.experiments.recall.trained_precision",
        takes_device=True,
    ),
    "memory-first": Experiment(
        "What stands below the memory decides what carries over: Mamba-2, Mamba-2 left out at times, or nothing.",
        "echo_ska.experiments.recall.memory_first",
        takes_device=True,
    ),
    "write-gate": Experiment(
        "What the write gate gives on long sequences and costs on tasks that training never asked; gate dropout.",
        "echo_ska.experiments.recall.write_gate",
        takes_device=True,
    ),
    "zero-shot": Experiment(
        "Benchmarks, facts in prose of up to 128k tokens, and a novel in any segments, by checkpoints/; needs --text.",
        "echo_ska.experiments.language.zero_shot",
        text="the benchmarks' files (docs/commands.md) and train/ with novels, at any depth",
    ),
}
"""By the name that the command line and the files in results/ use."""

__all__ = ["EXPERIMENTS", "Experiment"]
