"""Models of in-context regression: mixer layers between a linear read-in and a linear read-out, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from echo_ska.experiments.regression.task import InContextRegression
from echo_ska.nn import SequenceMixer, SoftmaxAttention, SpectralKoopmanAttention
from echo_ska.nn.aids import NORM_EPS, gate_score
from echo_ska.nn.peers import DeltaNet, GatedDeltaNet, LinearAttention, MesaNet

WIDTH, HEADS, RANK = 32, 2, 16


class Prediction(NamedTuple):
    """What `RegressionModel` returns: predictions [B, n + 1, P], and their mean squared error if there are labels."""

    predictions: Tensor
    loss: Tensor | None


class RegressionModel(nn.Module):
    """h = read_in(token); h = h + mixer(h) for every layer; read_out(h) at the questions. No norm, no feed-forward.

    Args:
        token_width: of an input token.
        hidden_size: of the mixers.
        outputs: P.
        mixers: the layers.
    """

    def __init__(self, token_width: int, hidden_size: int, outputs: int, mixers: Sequence[SequenceMixer]) -> None:
        super().__init__()
        self.read_in = nn.Linear(token_width, hidden_size)
        self.layers = nn.ModuleList(mixers)
        self.read_out = nn.Linear(hidden_size, outputs)

    def forward(self, inputs_embeds: Tensor, labels: Tensor | None = None) -> Prediction:
        """Predict at every question.

        Args:
            inputs_embeds: [B, 2 n + 1, token_width] as `Regressions.tokens` gives them.
            labels: the answers, [B, n + 1, P].
        """
        hidden = self.read_in(inputs_embeds)
        for mixer in self.layers:
            hidden = hidden + mixer(hidden)[0]
        predictions = self.read_out(hidden[:, ::2])
        return Prediction(predictions, None if labels is None else (predictions - labels).square().mean())


@dataclass(frozen=True)
class RegressionArm:
    """A kind of layer that is compared.

    Attributes:
        mixer: its class.
        settings: of its constructor, beside width and heads.
    """

    mixer: type[SequenceMixer]
    settings: dict[str, Any]

    def build(self, task: InContextRegression, layers: int, seed: int) -> RegressionModel:
        """The untrained model; `seed` decides every weight."""
        torch.manual_seed(seed)
        mixers = [self.mixer(WIDTH, num_heads=HEADS, **self.settings) for _ in range(layers)]
        return RegressionModel(task.width, WIDTH, task.outputs, mixers)

    def describe(self) -> dict[str, Any]:
        """For a record's configuration."""
        return {"mixer": self.mixer.__name__, "hidden_size": WIDTH, "num_heads": HEADS, **self.settings}


# A pair stands in one token, so nothing has to be moved along time: nobody gets a convolution. An output norm would
# take away the size of a prediction: all learn a scale per head instead (softmax, whose read is a mean, has neither).
_MEMORY: dict[str, Any] = {"rank": RANK, "head_dim": RANK, "conv_kernel": None, "output_norm": False}
_SOFTMAX: dict[str, Any] = {"head_dim": RANK, "conv_kernel": None}
_AVERAGING: dict[str, Any] = {**_MEMORY, "feature_map": "elu+1", "normalised": True, "unit_keys": False}

ARMS: dict[str, RegressionArm] = {
    "softmax": RegressionArm(SoftmaxAttention, _SOFTMAX),
    "softmax, no positions": RegressionArm(SoftmaxAttention, {**_SOFTMAX, "rope_theta": None}),
    "SKA, power 0": RegressionArm(SpectralKoopmanAttention, {**_MEMORY, "power": 0}),
    "SKA, blended": RegressionArm(SpectralKoopmanAttention, {**_MEMORY, "power": 2}),
    "MesaNet": RegressionArm(MesaNet, _MEMORY),
    "linear attention": RegressionArm(LinearAttention, _MEMORY),
    "linear, averaging": RegressionArm(LinearAttention, _AVERAGING),
    "DeltaNet": RegressionArm(DeltaNet, _MEMORY),
    "gated DeltaNet": RegressionArm(GatedDeltaNet, _MEMORY),
}
"""By the name of tables and pictures; all with W_q started from W_k and, where pairs are written, a write gate."""

BY_HAND = "SKA, set by hand"


def model_by_hand(
    task: InContextRegression, mixer: type[SequenceMixer] = SpectralKoopmanAttention, **settings: Any
) -> RegressionModel:
    """One head with identity projections: keys and queries are the x slots, values the y slots; only pairs are written.

    With SKA, at power 0 and the ridge of the posterior, its prediction IS the best ridge regression's.

    Args:
        task: what is predicted.
        mixer: the layer's class, with keys of unit norm and a write gate.
        settings: of its constructor; those of SKA are decided here.
    """
    if mixer is SpectralKoopmanAttention:
        # Keys have norm |x| / sqrt(|x|^2 + eps^2), so the ridge shrinks by their common square.
        settings = {"power": 0, "initial_ridge": task.ridge / (task.inputs + NORM_EPS**2), "fixed_ridge": True}
    width = task.width + task.outputs  # the last slots are for what is read
    fixed = {"num_heads": 1, "rank": task.inputs, "head_dim": task.outputs, "conv_kernel": None, "output_norm": False}
    layer: Any = mixer(width, **fixed, **settings)
    model = RegressionModel(task.width, width, task.outputs, [layer])
    known, closed = task.width - 1, gate_score(1e-9) - 30
    with torch.no_grad():
        for parameter in (*model.read_in.parameters(), *model.read_out.parameters(), layer.gate_proj.weight):
            parameter.zero_()
        model.read_in.weight[: task.width] = torch.eye(task.width)
        for projection in (layer.qkv.q_proj, layer.qkv.k_proj):
            projection.weight.copy_(torch.eye(task.inputs, width))
        layer.qkv.v_proj.weight.copy_(torch.eye(width)[task.inputs : known])
        layer.gate_proj.bias.fill_(closed)
        layer.gate_proj.weight[:, known] = -2 * closed
        layer.o_proj.weight.copy_(torch.eye(width)[:, task.width :])
        model.read_out.weight.copy_(torch.eye(width)[task.width :])
    return model
