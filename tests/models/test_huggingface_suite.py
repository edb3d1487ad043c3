"""Hugging Face's own tests of models (ModelTesterMixin, ConfigTester) on Echo, with every kind of layer.

`make check-huggingface` fetches them, as part of the source distribution of the installed transformers, and runs this
file; without the folder named by ECHO_SKA_HUGGINGFACE_TESTS it is skipped. The distribution does not hold their
GenerationTesterMixin: what it tests, test_generate.py, test_decoding.py and test_rollback.py do. Where the folder is a
checkout of their repository, it runs here too.

No test is left out. Those that the mixins themselves pass over ask for what is not there: attention weights as an
output (neither SKA nor Mamba-2 has any, and softmax attention goes through scaled_dot_product_attention, which gives
none), experts, images, rotary settings in Hugging Face's form, a tensor-parallel plan, or a GPU.
"""

from __future__ import annotations

import os
import unittest
from unittest import mock

import pytest
import torch
from transformers.models.auto import modeling_auto

from echo_ska.models import EchoConfig, EchoForCausalLM, EchoModel

FOLDER = os.environ.get("ECHO_SKA_HUGGINGFACE_TESTS")
if not FOLDER:
    pytest.skip(
        "run `make check-huggingface`, or set ECHO_SKA_HUGGINGFACE_TESTS to an unpacked source of transformers",
        allow_module_level=True,
    )
pytest.importorskip("parameterized", reason="Hugging Face's tests need it: pip install parameterized")
import huggingface_testers  # noqa: E402 (after the questions whether it can be)

THEIRS = huggingface_testers.load(FOLDER)


class EchoTester:
    """What Hugging Face's mixins ask for: a small configuration and inputs for it."""

    batch_size, seq_length, vocab_size, hidden_size, num_hidden_layers = 3, 12, 99, 32, 2
    is_training = True

    def __init__(self, parent, **fields):
        self.parent, self.fields = parent, fields

    def get_config(self):
        return EchoConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            num_heads=4,
            rank=8,
            state_size=8,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            **self.fields,
        )

    def prepare_config_and_inputs_for_common(self):
        input_ids = torch.randint(3, self.vocab_size, (self.batch_size, self.seq_length))
        return self.get_config(), {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}


class EchoSuite(THEIRS.ModelTesterMixin, THEIRS.GenerationTesterMixin):
    all_model_classes = (EchoModel, EchoForCausalLM)
    has_attentions = False  # attention weights are never formed: it goes through scaled_dot_product_attention
    test_can_init_all_missing_weights_before_2023 = True  # so that this one runs
    fields: dict = {}  # noqa: RUF012 (a subclass names its own)

    def setUp(self):
        self.model_tester = EchoTester(self, **self.fields)
        self.config_tester = THEIRS.ConfigTester(
            self,
            config_class=EchoConfig,
            vocab_size=99,
            hidden_size=32,
            num_hidden_layers=2,
            num_heads=4,
            **self.fields,
        )
        # The mixins ask the library's own tables which class has which head.
        for table, name in (("MODEL", "EchoModel"), ("MODEL_FOR_CAUSAL_LM", "EchoForCausalLM")):
            names = getattr(modeling_auto, f"{table}_MAPPING_NAMES")
            self.enterContext(mock.patch.dict(names, {EchoConfig.model_type: name}))

    def test_config(self):
        self.config_tester.run_common_tests()

    # What the generation tests ask of a cache: theirs looks for keys and values of attention, ours has other states.

    def _check_past_key_values_for_generate(self, batch_size, past_key_values, seq_length, config):
        assert len(past_key_values) == config.num_hidden_layers
        for layer in past_key_values.layers:
            assert layer.get_seq_length() == seq_length
            assert {len(tensor) for tensor in layer.state.tensors().values()} == {batch_size}

    def _check_caches_are_equal(self, cache1, cache2):
        for one, other in zip(cache1.layers, cache2.layers, strict=True):
            assert one.tokens == other.tokens
            others = other.state.compact().tensors()
            for name, tensor in one.state.compact().tensors().items():
                torch.testing.assert_close(tensor, others[name], msg=name)

    def test_left_padding_compatibility(self, *arguments, **settings):
        # Passed over for models without attention weights as an output; ours takes padding all the same.
        with mock.patch.object(type(self), "has_attentions", True):
            super().test_left_padding_compatibility(*arguments, **settings)

    def test_model_weights_reload_no_missing_tied_weights(self):
        # It exchanges the weights on disk, which the checksums beside them are there to refuse.
        with mock.patch("echo_ska.models.sealed_weights.write_sums"):
            super().test_model_weights_reload_no_missing_tied_weights()


class TestSSM(EchoSuite, unittest.TestCase):
    pass


class TestSSMWithAttention(EchoSuite, unittest.TestCase):
    fields = {"layer_types": ["mamba2", "full_attention"]}  # noqa: RUF012


class TestSSMWithSKA(EchoSuite, unittest.TestCase):
    fields = {"layer_types": ["mamba2", "ska"], "ska_at_ends": True}  # noqa: RUF012


class TestSSMWithChunkCausalSKA(EchoSuite, unittest.TestCase):
    fields = {"layer_types": ["mamba2", "ska"], "ska_at_ends": True, "refresh_interval": 4}  # noqa: RUF012
