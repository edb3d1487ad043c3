import math

import pytest
import together
import torch
from tiny_model import CountingData, TinyModel, build, config

from echo_ska.training import ScaleConfig, train
from echo_ska.training.guard import check_step

GUARDED = ScaleConfig(spike_factor=2, spike_window=3)


def test_a_spike_is_judged_by_the_losses_before_it():
    recent = []
    for step, loss in enumerate([9.0, 1.0, 1.0, 1.0, 1.9, 2.5]):  # nothing is judged before three are known
        check_step(step, loss, 1.0, recent, GUARDED, None)
    assert recent == [1.0, 1.9, 2.5]
    with pytest.raises(FloatingPointError, match=r"rose to 3.7 at step 6, more than 2 times .* 3 steps .*\(1.8\), so"):
        check_step(6, 3.7, 1.0, recent, GUARDED, None)
    assert recent == [1.0, 1.9, 2.5]


def test_without_a_factor_no_finite_loss_stops_it_but_is_remembered():
    recent = []
    for loss in (1.0, 1.0, 1e30):
        check_step(0, loss, 1.0, recent, ScaleConfig(spike_window=1), None)
    assert recent == [1e30]  # should the guard be asked for when the training goes on
    for loss, norm, what in ((math.inf, 1.0, "loss became inf"), (1.0, math.nan, "gradient's norm became nan")):
        with pytest.raises(FloatingPointError, match=f"The {what} at step 7, so .*no checkpoint"):
            check_step(7, loss, norm, recent, ScaleConfig(), None)


class Disturbed(CountingData):
    """From step 17 on, no token follows from the one before it."""

    def batch(self, step):
        batch = super().batch(step)
        return {name: (tokens * 7) % 13 for name, tokens in batch.items()} if step >= 17 else batch


def test_a_run_stops_at_a_spike_with_its_checkpoint_named_and_resumes_to_the_same_spike(tmp_path):
    settings = {"steps": 100, "learning_rate": 3e-2, "checkpoint_every": 5}
    guarded = ScaleConfig(spike_factor=2, spike_window=8)
    told = []
    for _ in range(2):
        with pytest.raises(FloatingPointError, match=r"at step 17, more than 2 times.*step-000015\.$") as stopped:
            train(build(), Disturbed(), config(**settings), scale=guarded, directory=tmp_path)
        told.append(str(stopped.value))
    assert told[0] == told[1]  # the losses before it are kept in the checkpoint


class Raises(TinyModel):
    """A model of one's own that raises where its numbers are not finite."""

    calls = 0

    def forward(self, *arguments, **named):
        self.calls += 1
        if self.calls == 7:
            raise FloatingPointError("not finite")
        return super().forward(*arguments, **named)


@pytest.mark.parametrize("model", [together.build_spoiled(rank=0), Raises()], ids=["a layer", "the model"])
def test_a_divergence_that_a_layer_meets_names_step_and_checkpoint(model, tmp_path):
    with pytest.raises(FloatingPointError, match=r"The loss became nan at step 6, so .*step-000005\.$"):
        train(model, CountingData(), config(), directory=tmp_path)
    with pytest.raises(ValueError, match="holds nan"):  # elsewhere than in a training, what is wrong is named
        together.build_echo().model.mixers[0](torch.full((1, 4, 16), math.nan))
