"""Two processes equal one: losses, gradients and weights within float32's rounding, resumption to the last bit."""

import functools
import re
from collections import defaultdict

import pytest
import together
import torch
from tiny_model import build_echo
from torch._dynamo.utils import counters

from echo_ska.models import EchoConfig, EchoForCausalLM
from echo_ska.training import ScaleConfig, TrainingConfig, train
from echo_ska.training.checkpoint import list_checkpoints
from echo_ska.training.engine import skips_logits_up_to
from echo_ska.training.scale import SKIP_LOGITS_AT, SKIP_LOGITS_FROM
from echo_ska.training.stored import open_tensors

WITHIN = 2e-6  # of numbers of order 1, after 8 steps in float32
SAME = (
    "echo",
    "unreached",
    "accumulate",
    "skip logits",
    "checkpoint activations",
    "kept",
    "resumed",
    "from one",
    "to other",
)


def assert_close(curve, reference):
    for what in ("losses", "weights"):
        kept = reference[what][-len(curve[what]) :]
        assert curve[what] == pytest.approx(kept, abs=WITHIN, rel=WITHIN)
    assert curve["norms"] == pytest.approx(reference["norms"][-len(curve["norms"]) :], rel=1e-5)


def check(two, strategy, what):
    """What two processes computed equals what one did, and both processes ended with the same bits."""
    curve = two.results[0][strategy][what]
    reference = two.one.get(what, two.one["kept"])
    assert_close(curve, reference)
    assert curve["weights"] == two.results[1][strategy][what]["weights"]
    assert len(curve["losses"]) == (4 if what in ("resumed", "from one", "to other") else together.STEPS)
    if what in ("echo", "unreached"):
        assert curve["evaluations"][0] == pytest.approx(reference["evaluations"][0], abs=WITHIN)


def check_exactness(two, strategy):
    """A resumption, also after a full disk, and activations computed anew change no bit."""
    results = two.results[0][strategy]
    for what in ("resumed", "after full", "checkpoint activations"):
        assert results[what]["weights"] == results["kept"]["weights"]
        assert results[what]["losses"] == results["kept"]["losses"][-len(results[what]["losses"]) :]


def check_bfloat16(two, strategy):
    """Autocast in every process, and weights and moments that stay float32, those too that are kept from it by name."""
    losses = two.results[0][strategy]["bf16"]["losses"]
    assert losses == pytest.approx(two.one["bf16"]["losses"], rel=1e-2)
    assert losses != pytest.approx(two.one["kept"]["losses"], rel=WITHIN)
    stored = open_tensors(list_checkpoints(two.folder / f"{strategy}-bf16")[-1])
    assert {tensor.dtype for kind in stored for tensor in kind.values()} == {torch.float32}


SENTENCES = {
    "batch": r"ValueError: A batch of 4 cannot be divided into 6 equal parts.* multiple of 6\.",
    "settings": r"ValueError: .*step-000008 was trained with another training\.learning_rate: use the same .*",
    "one fails": r"ValueError: part 1 has no text",
    "diverges": r"FloatingPointError: The loss became nan at step 6, so .* last good checkpoint is .*step-000004\.",
    "explodes": r"FloatingPointError: The gradient's norm became (nan|inf) at step 6, so .* is .*step-000004\.",
    "spoiled": r"FloatingPointError: The loss became nan at step 6, so .* last good checkpoint is .*step-000004\.",
    "full": r"OSError: The checkpoint .*step-000008 could not be written: .*",
}


def check_sentences(two, strategy):
    """Both processes end with one sentence."""
    for what, sentence in SENTENCES.items():
        # The process that met it has the narrower kind of ValueError, the other the one that all know.
        told = [result[strategy][what].replace("OtherSettingsError", "ValueError") for result in two.results]
        assert told[0] == told[1]
        assert re.fullmatch(sentence, told[0]), told[0]


def test_what_one_process_raises_alone_is_agreed_upon(two_processes):
    for found in (lambda result: result["ddp"]["raises"], lambda result: result["compiled"]):
        told = [found(result) for result in two_processes.results]
        assert told[0] == told[1]
        assert re.fullmatch(SENTENCES["spoiled"], told[0]), told[0]


@pytest.mark.parametrize("what", SAME)
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_equal_one(two_processes, strategy, what):
    check(two_processes, strategy, what)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_bfloat16_rounds_no_weight(two_processes, strategy):
    check_bfloat16(two_processes, strategy)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_what_must_not_change_a_bit_does_not(two_processes, strategy):
    check_exactness(two_processes, strategy)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_an_error_in_one_process_is_the_error_of_both(two_processes, strategy):
    check_sentences(two_processes, strategy)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_one_process_goes_on_from_the_checkpoints_of_two(two_processes, strategy):
    assert_close(together.curve(directory=two_processes.folder / f"{strategy}-one"), two_processes.one["kept"])


def test_dropout_follows_the_part_and_not_the_process(two_processes):
    assert_close(two_processes.results[0]["dropout"], two_processes.one["dropout"])


def test_a_source_of_whole_batches_is_refused(two_processes):
    assert "WholeBatches draws whole batches alone" in two_processes.results[0]["whole batches"]
    losses = together.curve("tiny", data=together.WholeBatches())["losses"]  # one process takes them
    assert len(losses) == together.STEPS


def test_a_loss_without_logits_is_the_loss(two_processes):
    reference = two_processes.one["kept"]
    fused, by_logits = (together.curve(skip_logits=skip) for skip in (True, False))
    for other in (fused, by_logits):
        assert_close(other, reference)
        assert other["accuracies"] == reference["accuracies"]
    assert fused["weights"] != by_logits["weights"]  # rounded otherwise: it was another way
    assert_close(together.curve(skip_logits=True, accumulate=4), reference)
    with pytest.raises(ValueError, match="skip_logits: TinyModel cannot give its loss without logits"):
        together.curve("tiny", skip_logits=True)


def test_large_vocabularies_and_few_labels_go_without_logits():
    def large(vocab_size):
        return EchoForCausalLM(EchoConfig(vocab_size=vocab_size, hidden_size=16, num_heads=2, rank=4, head_dim=8))

    model = large(SKIP_LOGITS_FROM)
    assert skips_logits_up_to(model, ScaleConfig()) == 1
    assert skips_logits_up_to(model, ScaleConfig(skip_logits=False)) < 0
    assert skips_logits_up_to(large(8192), ScaleConfig()) == SKIP_LOGITS_AT
    assert skips_logits_up_to(large(8192), ScaleConfig(skip_logits=True)) == 1
    assert skips_logits_up_to(large(8192), ScaleConfig(compile=True)) < 0
    model.lm_head = torch.nn.Linear(16, SKIP_LOGITS_FROM, bias=True)
    assert skips_logits_up_to(model, ScaleConfig()) < 0


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("scored", [8, 9])
def test_logits_are_computed_where_most_tokens_are_scored(scored, accumulate):
    class SomeScored:
        def batch(self, step, part=0, parts=1):
            tokens = torch.randint(13, (4, 17), generator=torch.Generator().manual_seed(step))[part::parts]
            labels = tokens.masked_fill(torch.arange(17) > scored, -100)  # the first of a row is never scored
            return {"input_ids": tokens[:, :16], "labels": labels[:, :16]}

        def describe(self):
            return {}

    with_logits = []
    model = build_echo()
    model.register_forward_hook(lambda _, __, output: with_logits.append(output.logits is not None))
    config = TrainingConfig(steps=2, learning_rate=1e-3)
    train(model, SomeScored(), config, scale=ScaleConfig(accumulate=accumulate))
    assert with_logits == [scored > 16 * SKIP_LOGITS_AT] * 2 * accumulate


def test_pieces_accumulated_by_one_process_equal_the_batch(two_processes):
    for pieces in (2, 4):
        assert_close(together.curve(accumulate=pieces), two_processes.one["kept"])


def test_activations_computed_anew_change_no_bit(two_processes):
    assert together.curve(checkpoint_activations=True)["weights"] == two_processes.one["kept"]["weights"]
    with pytest.raises(ValueError, match="TinyModel has no gradient checkpointing"):
        together.curve("tiny", checkpoint_activations=True)


def test_a_compiled_model_learns_the_same():
    class Plain(torch.nn.Module):
        """Without a recurrence, which torch.compile leaves as it is."""

        def __init__(self):
            super().__init__()
            self.inner = torch.nn.Sequential(torch.nn.Embedding(13, 8), torch.nn.Tanh(), torch.nn.Linear(8, 13))

        def forward(self, input_ids, labels):
            logits = self.inner(input_ids)
            loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
            return together.Result(loss, logits)

    def plain():
        torch.manual_seed(0)
        return Plain()

    together.MODELS["plain"] = plain
    counters.clear()
    compiled = together.curve("plain", compile=True)
    assert counters["stats"]["unique_graphs"] >= 1
    assert_close(compiled, together.curve("plain"))


def curve_and_gradients(**scale):
    """What an Echo's training gives, and every parameter's gradients, before they are clipped: [steps, ...]."""
    model, kept = build_echo(), defaultdict(list)
    for name, parameter in model.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda p, mine=kept[name]: mine.append(p.grad.clone()))
    together.MODELS["watched"] = lambda: model
    return together.curve("watched", **scale), {name: torch.stack(gradients) for name, gradients in kept.items()}


def test_a_compiled_echo_learns_the_same(monkeypatch):
    """Traced and differentiated by the compiler, but not lowered by Inductor, which takes about a minute on a CPU."""
    eager, expected = curve_and_gradients()
    torch.compiler.reset()
    counters.clear()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    compiled, gradients = curve_and_gradients(compile=True)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    assert_close(compiled, eager)
    assert len(next(iter(gradients.values()))) == together.STEPS
    torch.testing.assert_close(gradients, expected, atol=WITHIN, rtol=WITHIN)


@pytest.mark.parametrize("strategy", ["fsdp", "deepspeed", "context"])
def test_one_process_has_nothing_to_share(strategy):
    with pytest.raises(ValueError, match=f"strategy {strategy} shares .* among processes and there is one"):
        together.curve(strategy=strategy)


def test_a_model_that_returns_tuples_is_refused(tmp_path):
    model = build_echo()
    model.config.return_dict = False
    with pytest.raises(ValueError, match="reads its outputs by name: leave out return_dict=false"):
        train(model, together.UnevenData(), TrainingConfig(steps=1), directory=tmp_path / "run")
    assert not list((tmp_path / "run").iterdir())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_half_precision_is_refused_unless_what_is_half_is_not_trained(tmp_path, dtype):
    model = build_echo().to(dtype)
    with pytest.raises(ValueError, match=r"parameters are in b?float16, in which .* lost: train model\.float\(\)"):
        train(model, together.UnevenData(), TrainingConfig(steps=1), directory=tmp_path / "run")
    assert not list((tmp_path / "run").iterdir())
    model.float().model.embed_tokens.to(dtype).requires_grad_(False)
    model.model.embed_tokens.register_forward_hook(lambda module, given, read: read.float())
    assert train(model, together.UnevenData(), TrainingConfig(steps=1)).figures["loss"] > 0


def test_steps_are_taken_while_another_training_of_the_process_is_between_its_own(monkeypatch):
    """Accelerate has one switch a process: a Trainer that accumulates turns it off, and may be stopped before its
    step."""
    from accelerate.state import GradientState

    model = build_echo()
    before = together.weights(model)
    monkeypatch.setattr(GradientState(), "sync_gradients", False)
    train(model, together.UnevenData(), TrainingConfig(steps=2))
    assert not torch.equal(together.weights(model), before)


def test_fsdp_refuses_a_block_of_several_dtypes_in_one_sentence(two_processes):
    sentence = r"ValueError: strategy fsdp gathers .* has parameters in float32 and float64: train it in .*"
    for results in two_processes.results:
        assert re.fullmatch(sentence, results["mixed"])
