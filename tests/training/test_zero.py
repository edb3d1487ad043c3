"""DeepSpeed's ZeRO-1 in two processes on this CPU, where DeepSpeed is installed; its settings everywhere."""

import importlib.util
import os

import pytest
from launched import TwoProcesses
from test_engine import SAME, assert_close, check, check_bfloat16, check_exactness, check_sentences
from tiny_model import config

from echo_ska.training.zero import deepspeed_configuration, deepspeed_plugin

INSTALLED = importlib.util.find_spec("deepspeed") is not None


def test_settings():
    settings = deepspeed_configuration(config())
    assert settings["zero_optimization"] == {"stage": 1}
    assert settings["gradient_clipping"] == 1.0
    assert settings["bf16"] == {"enabled": False}  # autocast does it, and leaves parameters in float32
    assert deepspeed_configuration(config(gradient_clip=None))["gradient_clipping"] == 0.0


@pytest.mark.skipif(INSTALLED, reason="DeepSpeed is installed")
def test_without_deepspeed_it_is_refused():
    with pytest.raises(ValueError, match=r"needs DeepSpeed: pip install 'echo-ska\[deepspeed\]'"):
        deepspeed_plugin(config())


@pytest.mark.skipif(not INSTALLED, reason="DeepSpeed is not installed")
def test_two_processes_equal_one(tmp_path_factory):
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    two = TwoProcesses(tmp_path_factory.mktemp("deepspeed"), "deepspeed")
    for what in SAME:
        check(two, "deepspeed", what)
    check_bfloat16(two, "deepspeed")
    check_exactness(two, "deepspeed")
    check_sentences(two, "deepspeed")
    import together

    assert_close(together.curve(directory=two.folder / "deepspeed-one"), two.one["kept"])
