"""The training loop: one for every model and every task.

A step is a pure function of the weights, the optimiser's moments, the seed and the step's number: the batch
comes from `data.batch(step)`, the learning rate from a schedule over steps, and torch's generator is seeded
anew for each step. A run killed at any moment and started again therefore ends with the very weights of an
undisturbed one, and evaluations, however many, change nothing.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from echo_ska.tasks import accuracy
from echo_ska.training.checkpoint import (
    Checkpoint,
    compare_configurations,
    list_checkpoints,
    read_checkpoint,
    remove_partial,
    restore,
    save_checkpoint,
)
from echo_ska.training.config import TrainingConfig
from echo_ska.training.data import DataSource, step_seed
from echo_ska.training.log import TrainingLog
from echo_ska.training.optimizer import build_optimizer, learning_rate_factor, set_learning_rate
from echo_ska.training.records import RunRecord, make_record
from echo_ska.training.reporter import Reporter

Evaluation = Callable[[nn.Module, int], dict[str, Any]]
"""Called with the model, in eval mode and without gradients, and the steps done; returns figures (JSON)."""

BOOKKEEPING = {f"training.{name}" for name in ("log_every", "evaluate_every", "checkpoint_every", "keep_checkpoints")}
"""Settings that may change between a checkpoint and its resumption, for they do not touch the weights."""


@dataclasses.dataclass
class Progress:
    """What the loop carries from step to step beside model and optimiser; JSON, kept in checkpoints."""

    seconds: float = 0.0  # of training, over all resumed runs, evaluations and checkpoints included
    figures: dict[str, Any] = dataclasses.field(default_factory=dict)  # the latest of the log and the evaluation
    # Since the last line of the log:
    steps: int = 0
    loss_sum: float = 0.0
    correct: int = 0
    scored: int = 0
    tokens: int = 0
    training_seconds: float = 0.0  # steps alone

    def close_window(self) -> dict[str, float]:
        """The means since the last call, which starts anew."""
        means = {"loss": self.loss_sum / self.steps, "tokens_per_second": self.tokens / self.training_seconds}
        if self.scored:
            means["accuracy"] = self.correct / self.scored
        self.steps, self.loss_sum, self.correct, self.scored, self.tokens = 0, 0.0, 0, 0, 0
        self.training_seconds = 0.0
        return means


def train(
    model: nn.Module,
    data: DataSource,
    config: TrainingConfig,
    *,
    evaluate: Evaluation | None = None,
    directory: str | Path | None = None,
    reporter: Reporter | None = None,
    resume: bool = True,
    name: str = "training",
) -> RunRecord:
    """Train `model` in place, for `config.steps` steps.

    Args:
        model: `model(input_ids=, labels=)` returns `.loss`, a scalar, and `.logits` [B, T, V]; without logits
            (a regression, say) no accuracy is counted. Built (and seeded) by the caller; a resumed run needs one
            of the same architecture, whose weights are overwritten.
        data: gives the batch of every step.
        config: see `TrainingConfig`.
        evaluate: called every `config.evaluate_every` steps and after the last; its figures go to log and
            record.
        directory: where checkpoints and log.jsonl are kept; None keeps nothing.
        reporter: told of every line of the log.
        resume: continue from the newest checkpoint in `directory`. False refuses a directory that holds any.
        name: the record's name.

    Returns:
        A record whose configuration has `training`, `data` and `model`, and whose figures are the last log
        line's (`loss` in nats and `accuracy` of scored tokens, both means over the steps since the line
        before; `tokens_per_second`), the last evaluation's, and `parameters`. Nothing is written by it: see
        `records.append`.

    Raises:
        ValueError: if a checkpoint is damaged or of another configuration or model, naming what differs, or a
            precision or device cannot be had. Nothing is overwritten.
        FloatingPointError: for a loss or gradient that is not finite; the weights stay as the step before
            left them.
        OSError: if a checkpoint cannot be written.
    """
    device = _device(config)
    use_bfloat16 = _use_bfloat16(config, device)
    configuration = {
        "training": dataclasses.asdict(config),
        "data": data.describe(),
        "model": describe_model(model),
    }
    folder = None if directory is None else Path(directory)
    checkpoint = None if folder is None else _checkpoint_to_resume(folder, configuration, resume)

    # Accelerate places nothing: its device is one for the whole process, ours is one for each call.
    accelerator = Accelerator(mixed_precision="no", device_placement=False)
    if accelerator.num_processes > 1:
        raise ValueError("Training runs in one process: start it without a distributed launcher.")
    model.to(device)
    optimizer = build_optimizer(model, config.learning_rate, config.weight_decay, config.betas)
    first_step, progress = 0, Progress()
    if checkpoint is not None:
        restore(checkpoint, model, optimizer)
        first_step, progress = checkpoint.step, Progress(**checkpoint.state)
    prepared, prepared_optimizer = accelerator.prepare(model, optimizer)
    log = None
    if folder is not None:
        remove_partial(folder)
        log = TrainingLog(folder / "log.jsonl")
        log.truncate(first_step)
    if reporter is not None:
        reporter.update(first_step, config.steps, {})

    started = time.perf_counter() - progress.seconds
    prepared.train()
    for step in range(first_step, config.steps):
        step_started = time.perf_counter()
        torch.manual_seed(step_seed("model", config.seed, step))
        factor = learning_rate_factor(step, config.steps, config.warmup_steps, config.final_learning_rate_fraction)
        set_learning_rate(optimizer, factor)
        batch = {key: value.to(device, non_blocking=True) for key, value in data.batch(step).items()}
        with torch.autocast(device.type, torch.bfloat16, enabled=use_bfloat16):
            output = prepared(**batch)
        accelerator.backward(output.loss)
        gradient_norm = accelerator.clip_grad_norm_(prepared.parameters(), config.gradient_clip or math.inf)
        loss, norm = torch.stack([output.loss.detach().float(), gradient_norm.float()]).tolist()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            optimizer.zero_grad(set_to_none=True)
            raise FloatingPointError(_not_finite(step, loss, norm, folder))
        prepared_optimizer.step()
        prepared_optimizer.zero_grad(set_to_none=True)
        _count(progress, loss, getattr(output, "logits", None), batch)
        progress.training_seconds += time.perf_counter() - step_started

        done = step + 1
        last = done == config.steps
        if last or done % config.log_every == 0:
            figures = progress.close_window()
            progress.figures |= figures
            entry = {
                "step": done,
                **figures,
                "learning_rate": config.learning_rate * factor,
                "gradient_norm": norm,
            }
            if log is not None:
                log.append(entry | {"seconds": time.perf_counter() - started})
            if reporter is not None:
                reporter.update(done, config.steps, figures)
        if evaluate is not None and (last or (config.evaluate_every and done % config.evaluate_every == 0)):
            evaluated = _evaluate(evaluate, model, done)
            progress.figures |= evaluated
            if log is not None:
                log.append({"step": done, "evaluation": evaluated})
        progress.seconds = time.perf_counter() - started
        if folder is not None and (last or (config.checkpoint_every and done % config.checkpoint_every == 0)):
            state = dataclasses.asdict(progress)
            save_checkpoint(folder, done, model, optimizer, configuration, state, config.keep_checkpoints)

    parameters = sum(parameter.numel() for parameter in model.parameters())
    figures = progress.figures | {"parameters": parameters}
    return make_record(name, configuration, figures, seed=config.seed, seconds=progress.seconds)


def describe_model(model: nn.Module) -> dict[str, Any]:
    """The model's class and, where it has a Hugging Face configuration, that, without what is not of the function."""
    config: Any = getattr(model, "config", None)
    settings = config.to_dict() if hasattr(config, "to_dict") else {}
    passing = {"transformers_version", "_name_or_path", "use_cache", *getattr(config, "unread_fields", ())}
    return {"class": type(model).__name__, **{key: settings[key] for key in settings if key not in passing}}


def _device(config: TrainingConfig) -> torch.device:
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is cuda, but torch finds no GPU: use device cpu or auto.")
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(config.device)


def _use_bfloat16(config: TrainingConfig, device: torch.device) -> bool:
    if config.precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if config.precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(False):
        raise ValueError("precision is bf16, but this GPU has no bfloat16 arithmetic: use fp32 or auto.")
    return config.precision == "bf16"


def _checkpoint_to_resume(directory: Path, configuration: dict[str, Any], resume: bool) -> Checkpoint | None:
    found = list_checkpoints(directory)
    if not found:
        return None
    if not resume:
        raise ValueError(f"{directory} already holds checkpoints: resume, or train in another directory.")
    checkpoint = read_checkpoint(found[-1])
    differing = set(compare_configurations(checkpoint.configuration, configuration)) - BOOKKEEPING
    if differing:
        raise ValueError(
            f"{checkpoint.path} was trained with another {', another '.join(sorted(differing))}: "
            "use the same settings to resume it, or train in another directory."
        )
    return checkpoint


def _count(progress: Progress, loss: float, logits: Tensor | None, batch: dict[str, Tensor]) -> None:
    progress.steps += 1
    progress.loss_sum += loss
    if logits is not None:
        correct, scored = accuracy(logits.detach(), batch["labels"])
        progress.correct += correct
        progress.scored += scored
    read = batch["input_ids"] if "input_ids" in batch else batch["inputs_embeds"]
    progress.tokens += read.shape[:2].numel()


def _evaluate(evaluate: Evaluation, model: nn.Module, step: int) -> dict[str, Any]:
    model.eval()
    try:
        with torch.no_grad():
            return evaluate(model, step)
    finally:
        model.train()


def _not_finite(step: int, loss: float, norm: float, directory: Path | None) -> str:
    what = f"loss became {loss}" if not math.isfinite(loss) else f"gradient's norm became {norm}"
    found = [] if directory is None else list_checkpoints(directory)
    where = f"the last good checkpoint is {found[-1]}" if found else "no checkpoint has been written"
    return f"The {what} at step {step}, so that step was not taken; {where}."
