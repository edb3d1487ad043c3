"""A short distillation: first each SKA layer learns the attention it replaced, then the whole model the text."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echo_ska.convert.attention import ReplacedAttention
from echo_ska.convert.classes import FIELD
from echo_ska.convert.data import ReadOn
from echo_ska.convert.hosts import decoder_layers
from echo_ska.convert.replace import replaced_attentions
from echo_ska.training import DataSource, Reporter, RunRecord, TrainingConfig, train
from echo_ska.training.device import half_precision, training_device
from echo_ska.training.loop import Evaluation

MATCHING = TrainingConfig(steps=300, learning_rate=3e-3, weight_decay=0.0)
"""The first stage unless told otherwise."""

FINETUNING = TrainingConfig(steps=300, learning_rate=1e-3)
"""The second stage unless told otherwise."""


class StageLoss(NamedTuple):
    """What a stage's module returns: the loss, a scalar, and logits [B, T, V] where there are any."""

    loss: Tensor
    logits: Tensor | None


@dataclasses.dataclass(frozen=True)
class Distillation:
    """What the two stages gave.

    Attributes:
        matching: the record of the first stage, whose loss is the normalised error of the layers' outputs; None if it
            was left out.
        finetuning: the record of the second stage; None if it was left out.
    """

    matching: RunRecord | None
    finetuning: RunRecord | None


class OutputMatching(nn.Module):
    """The SKA layers of a student, each fed what its teacher's attention is fed, and held to what that gives.

    The loss of a layer is the mean squared error of its output over the teacher's mean square, at real tokens; layers
    count alike. Only they are parameters of this module, so only they are trained. Layers that are SKA in the teacher
    too, replaced before, have nothing to learn from it and are left out. Outputs are not dropped: the
    teacher's are not, and a layer that drops its own could not come near them.

    Args:
        student: a model with replaced layers.
        teacher: the model it was made from; kept as it is, in eval mode.

    Raises:
        ValueError: the student has no replaced layer, or none that is attention in the teacher.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        super().__init__()
        replaced = replaced_attentions(student)
        if not replaced:
            raise ValueError("the student has no SKA layer: call replace_attention on it first")
        blocks, name = decoder_layers(teacher)
        attentions = {index: getattr(blocks[index], name) for index in replaced if index < len(blocks)}
        targets = {index: each for index, each in attentions.items() if not isinstance(each, ReplacedAttention)}
        if len(attentions) < len(replaced) or not targets:
            raise ValueError("the teacher must be the model as it was before: copy.deepcopy it, then replace_attention")
        self.layers = nn.ModuleDict({str(index): replaced[index] for index in targets})
        self._targets = {str(index): each for index, each in targets.items()}  # a dict hides the teacher's
        self._teacher = [teacher]  # parameters from torch, and a list the teacher itself
        self._student_config: Any = getattr(student, "config", None)

    def describe(self) -> dict[str, Any]:
        """What a run that goes on has to have alike: how the layers started and what they are held to."""
        return {"replaced": getattr(self._student_config, FIELD, None), "teacher": parameter_digest(self._teacher[0])}

    def train(self, mode: bool = True) -> Self:
        """As any module's, but for the dropout of the layers' outputs, which stays off."""
        super().train(mode)
        for layer in self.layers.values():
            cast(ReplacedAttention, layer).dropout.eval()
        return self

    def forward(
        self, input_ids: Tensor, labels: Tensor | None = None, attention_mask: Tensor | None = None
    ) -> StageLoss:
        """[B, T] token ids, and the padding mask if there is padding. Labels are not read."""
        teacher = self._teacher[0].to(input_ids.device).eval()
        with torch.no_grad(), _watched(self._targets) as seen:
            teacher(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, logits_to_keep=1)
        losses = []
        for index, layer in self.layers.items():
            arguments, settings, target = seen[index]
            output, _ = layer(*arguments, **settings)
            error, size = (output - target).float().square(), target.float().square()
            if attention_mask is not None:
                real = attention_mask.to(error.dtype).unsqueeze(-1)
                error, size = error * real, size * real
            losses.append(error.sum() / size.sum().clamp_min(torch.finfo(size.dtype).tiny))
        return StageLoss(torch.stack(losses).mean(), None)


class Finetuning(nn.Module):
    """The whole student: cross-entropy, and, weighted, its divergence from the teacher's predictions.

    Args:
        student: what is trained.
        teacher: needed where `kl_weight` is not 0.
        kl_weight: of the mean Kullback-Leibler divergence of the student's from the teacher's next-token
            distributions, in nats, at positions whose label counts.

    Raises:
        ValueError: a weight without a teacher, or one below 0.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module | None = None, kl_weight: float = 0.0) -> None:
        super().__init__()
        if kl_weight < 0 or (kl_weight and teacher is None):
            raise ValueError(f"kl_weight must be at least 0, and needs a teacher above it, got {kl_weight}")
        self.student, self.kl_weight = student, kl_weight
        self.config = getattr(student, "config", None)
        self._teacher = [teacher]

    def describe(self) -> dict[str, Any]:
        """What a run that goes on has to have alike, besides the student's configuration."""
        teacher = self._teacher[0] if self.kl_weight else None
        return {"kl_weight": self.kl_weight, "teacher": None if teacher is None else parameter_digest(teacher)}

    def forward(self, input_ids: Tensor, labels: Tensor, attention_mask: Tensor | None = None) -> StageLoss:
        """[B, T] token ids and labels, aligned as in Hugging Face: labels[t] is the token at t, -100 none."""
        output = self.student(input_ids=input_ids, labels=labels, attention_mask=attention_mask, use_cache=False)
        loss, teacher = output.loss, self._teacher[0]
        if self.kl_weight and teacher is not None:
            with torch.no_grad():
                wanted = teacher.to(input_ids.device).eval()(
                    input_ids=input_ids, attention_mask=attention_mask, use_cache=False
                )
            counts = labels[:, 1:] != -100
            found, target = (
                F.log_softmax(logits[:, :-1][counts].float(), dim=-1) for logits in (output.logits, wanted.logits)
            )
            loss = loss + self.kl_weight * F.kl_div(found, target, log_target=True, reduction="batchmean")
        return StageLoss(loss, output.logits)


def distil(
    student: nn.Module,
    teacher: nn.Module,
    data: DataSource,
    *,
    matching: TrainingConfig | None = MATCHING,
    finetuning: TrainingConfig | None = FINETUNING,
    kl_weight: float = 0.0,
    directory: str | Path | None = None,
    evaluate: Evaluation | None = None,
    reporter: Reporter | None = None,
) -> Distillation:
    """Bring a model with replaced layers near the one it was made from, in place, in two stages.

    Both are run by `echo_ska.training.train`: with a directory, an interrupted distillation goes on from its last
    checkpoint when it is called again.

    Args:
        student: what `replace_attention` changed, in float32.
        teacher: a copy from before (`copy.deepcopy`), which stays as it is, but for the device.
        data: batches of `input_ids` and `labels` (and `attention_mask`, if there is padding); the second stage reads on
            from where the first stopped.
        matching: of the first stage, `OutputMatching`; None leaves it out.
        finetuning: of the second, `Finetuning`; None leaves it out.
        kl_weight: of the second stage.
        directory: for checkpoints and logs, in `matching` and `finetuning` below it; None keeps none.
        evaluate: called with the student and the steps of the stage, as `train` calls it.
        reporter: told how far a stage is.

    Returns:
        The stages' records.

    Raises:
        ValueError: what does not fit together, or parameters to be trained, or a teacher, in half precision.
        FloatingPointError: a loss or gradient that is not finite; the weights stay as the step before left them.
    """
    folder = None if directory is None else Path(directory)
    if half := half_precision(parameter for parameter in student.parameters() if parameter.requires_grad):
        raise ValueError(
            f"a training's small changes are lost in {half}: distil student.float() from teacher.float(), save the "
            f"result and load it with dtype={half}"
        )

    asked = teacher.parameters() if matching is not None or kl_weight else ()
    if half := half_precision(parameter for parameter in asked if parameter.is_floating_point()):
        raise ValueError(f"the teacher is in {half} and the student in float32: give teacher.float()")
    student.eval()  # also what no stage trains, as `evaluate` is to see it

    def run(stage: nn.Module, batches: DataSource, config: TrainingConfig, name: str) -> RunRecord:
        student.to(training_device(config))  # all of it: the stage holds the layers that are trained alone
        return train(
            stage,
            batches,
            config,
            evaluate=None if evaluate is None else lambda _, step: evaluate(student, step),
            directory=None if folder is None else folder / name,
            reporter=reporter,
            name=name,
        )

    first = second = None
    if matching is not None:
        first = run(OutputMatching(student, teacher), data, matching, "matching")
    if finetuning is not None:
        unread = data if matching is None else ReadOn(data, matching.steps)
        second = run(Finetuning(student, teacher, kl_weight), unread, finetuning, "finetuning")
    student.eval()
    return Distillation(first, second)


def parameter_digest(model: nn.Module) -> str:
    """A checksum of all parameters, their names, shapes and dtypes."""
    digest = hashlib.blake2b(digest_size=16)
    for name, parameter in model.named_parameters():
        numbers = parameter.detach().cpu().contiguous()
        digest.update(f"{name} {list(numbers.shape)} {numbers.dtype}".encode())
        digest.update(numbers.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def _watched(modules: dict[str, nn.Module]) -> Iterator[dict[str, tuple[tuple, dict[str, Any], Tensor]]]:
    """While it lasts, what each module is called with, and the first part of what it returns, by its name."""
    seen: dict[str, tuple[tuple, dict[str, Any], Tensor]] = {}

    def watch(name: str, module: nn.Module) -> Any:
        def keep(_: nn.Module, arguments: tuple, settings: dict[str, Any], output: tuple) -> None:
            seen[name] = (arguments, settings, output[0])

        return module.register_forward_hook(keep, with_kwargs=True)

    hooks = [watch(name, module) for name, module in modules.items()]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
