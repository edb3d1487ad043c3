import pytest
import torch
from tiny_model import CountingData
from together import UnevenData

from echo_ska.training.parts import Parts, draw_parts, scored_tokens
from echo_ska.training.processes import Processes


def test_shares_are_those_of_the_scored_tokens():
    data = UnevenData()
    for step in range(6):
        drawn = draw_parts(Parts(data, Processes(), 4), step)
        whole = data.batch(step)
        assert [part.number for part in drawn] == [0, 1, 2, 3]
        assert sum(part.share for part in drawn) == pytest.approx(1)
        for number, batch, share, scored_share in drawn:
            assert torch.equal(batch["input_ids"], whole["input_ids"][number::4])
            scored = scored_tokens(whole["labels"][number::4])
            assert scored_share == scored / batch["input_ids"].numel()
            assert share == scored / scored_tokens(whole["labels"])
            assert scored_tokens(batch["labels"]) == max(scored, 1)  # its loss is a number, which counts for nothing
    assert any(part.share == 0 for step in range(6) for part in draw_parts(Parts(data, Processes(), 4), step))


def test_what_the_source_keeps_stays_as_it_is():
    kept = {}

    class Keeping(UnevenData):
        def batch(self, step, part=0, parts=1):
            return kept.setdefault((step, part), super().batch(step, part, parts))

    for _ in range(2):
        drawn = draw_parts(Parts(Keeping(), Processes(), 4), 1)
        assert [part.share for part in drawn if part.number % 2] == [0, 0]
    for (step, part), batch in kept.items():
        assert torch.equal(batch["labels"], UnevenData().batch(step, part, 4)["labels"])


def test_a_whole_batch_is_drawn_as_ever():
    ((number, batch, share, scored),) = draw_parts(Parts(CountingData(), Processes(), 1), 3)
    assert (number, share, scored) == (0, None, scored_tokens(batch["labels"]) / batch["labels"].numel())
    assert torch.equal(batch["input_ids"], CountingData().batch(3)["input_ids"])


def test_a_batch_without_labels_is_refused_as_such():
    class Nothing(UnevenData):
        def batch(self, step, part=0, parts=1):
            batch = super().batch(step, part, parts)
            return batch | {"labels": torch.full_like(batch["labels"], -100)}

    for accumulate in (1, 2):
        with pytest.raises(ValueError, match="The batch of step 3 has no scored label"):
            draw_parts(Parts(Nothing(), Processes(), accumulate), 3)


def test_real_numbers_all_count():
    assert scored_tokens(torch.zeros(2, 3, 4)) == 24


def test_a_source_that_knows_no_parts_is_refused():
    with pytest.raises(ValueError, match="CountingData draws whole batches alone"):
        Parts(CountingData(), Processes(), 2)
