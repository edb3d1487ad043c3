import pytest

from echo_ska.training import ScaleConfig


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strategy": "zero"}, "strategy must be one of auto, ddp, fsdp, deepspeed, context, got 'zero'"),
        ({"accumulate": 0}, "accumulate must be a whole number of at least 1"),
        ({"accumulate": 2.0}, "accumulate must be a whole number of at least 1"),
        ({"spike_window": 0}, "spike_window must be a whole number of at least 1"),
        ({"spike_factor": 1.0}, "spike_factor must be a number above 1"),
        ({"spike_factor": float("nan")}, "spike_factor must be a number above 1"),
    ],
)
def test_values_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ScaleConfig(**settings)
