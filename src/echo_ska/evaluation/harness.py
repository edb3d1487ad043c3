"""lm-evaluation-harness asked in this process: its tasks, or those of `local_tasks`, of a model that is already loaded.

The harness is an extra (`pip install 'echo-ska[eval]'`) and is imported only when it is asked.
"""

from __future__ import annotations

import contextlib
import importlib.util
import multiprocessing
import os
import sys
from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from echo_ska.evaluation.local_tasks import LOCAL_TASKS

RESAMPLES = 1000
"""Of the questions, for the standard error of what is no mean (perplexity)."""


def require_harness() -> None:
    """Raise ValueError, saying how to get it, unless lm-evaluation-harness is installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise ValueError("lm-evaluation-harness is not installed: pip install 'echo-ska[eval]'.")


class Harness:
    """The harness with some tasks, found before any model is loaded.

    Args:
        tasks: names of the harness's own, which it downloads, and definitions, as `local_tasks.prepare` gives them.

    Raises:
        ValueError: the harness is not installed, or it has no task of such a name.
    """

    def __init__(self, tasks: Sequence[str | dict[str, Any]]) -> None:
        require_harness()
        import datasets
        from lm_eval.tasks import TaskManager

        datasets.disable_progress_bars()
        downloaded = [task for task in tasks if isinstance(task, str)]
        self.tasks = list(tasks)
        self.manager = TaskManager(include_defaults=bool(downloaded))  # which reads some thousand files
        known = {*self.manager.all_tasks, *self.manager.all_groups, *self.manager.all_tags}
        if unknown := [task for task in downloaded if task not in known]:
            raise ValueError(
                f"Neither the harness nor this package has a task {unknown[0]!r}: `lm-eval ls tasks` lists the "
                f"harness's, ours are {', '.join(LOCAL_TASKS)}."
            )

    def ask(
        self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, *, limit: int | None = None, batch_size: int = 1
    ) -> dict[str, dict[str, Any]]:
        """Ask everything; the harness's progress goes to standard error.

        Args:
            model: a causal language model of Hugging Face's kind.
            tokenizer: the model's.
            limit: questions of each task, from its first; None asks all.
            batch_size: sequences that are read together.

        Returns:
            By task (and group of tasks): `questions`, how many were asked (None for a group), and `metrics`, by name
            `value` and `standard_error` (None where there is none).
        """
        import lm_eval
        from lm_eval.models.huggingface import HFLM

        if multiprocessing.current_process().daemon:  # which may not have the children that draw the resamples
            os.environ["DISABLE_MULTIPROC"] = "1"
        asked = HFLM(pretrained=model, backend="causal", tokenizer=tokenizer, batch_size=batch_size)
        with contextlib.redirect_stdout(sys.stderr):
            results: dict[str, Any] = lm_eval.simple_evaluate(
                asked,
                tasks=self.tasks,
                limit=limit,
                task_manager=self.manager,
                bootstrap_iters=RESAMPLES,
                log_samples=False,
            )
        return {name: _scores(results, name) for name in results["results"]}


def _scores(results: dict[str, Any], task: str) -> dict[str, Any]:
    found: dict[str, Any] = {"questions": results.get("n-samples", {}).get(task, {}).get("effective"), "metrics": {}}
    values = results["results"][task]
    for key, value in values.items():
        metric, _, filtered = key.partition(",")
        if not filtered or metric.endswith("_stderr"):
            continue
        error = values.get(f"{metric}_stderr,{filtered}")
        found["metrics"][metric if filtered == "none" else key] = {
            "value": value,
            "standard_error": error if isinstance(error, float) else None,
        }
    return found
