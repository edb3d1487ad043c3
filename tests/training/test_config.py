import pytest

from echo_ska.training import TrainingConfig


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", 0),
        ("steps", 1.5),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("learning_rate", None),
        ("warmup_fraction", 1.5),
        ("final_learning_rate_fraction", -0.1),
        ("weight_decay", -1.0),
        ("betas", (0.9, 1.0)),
        ("gradient_clip", 0.0),
        ("seed", -1),
        ("precision", "fp16"),
        ("device", "tpu"),
        ("log_every", 0),
        ("checkpoint_every", -1),
        ("keep_checkpoints", 0),
    ],
)
def test_values_out_of_range_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"^{field} must be"):
        TrainingConfig(**({"steps": 10} | {field: value}))


def test_defaults_hold_and_lists_become_tuples():
    assert TrainingConfig(steps=10, betas=[0.9, 0.99]).betas == (0.9, 0.99)
    assert TrainingConfig(steps=10, gradient_clip=None).warmup_steps == 1
