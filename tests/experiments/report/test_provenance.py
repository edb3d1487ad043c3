from dataclasses import replace

import pytest
from made_up import made_up

from echo_ska.experiments.report.provenance import provenance

RECORD = made_up("tiny", {}, {})


def test_what_records_have_in_common_is_said_once():
    others = [
        replace(RECORD, seed=1, seconds=6600.0, date="2030-02-01T00:00:00+00:00"),
        replace(
            RECORD, seed=2, commit=None, dirty=None, hardware={"cpu": "x", "cores": 8, "threads": 4, "gpu": "A GPU"}
        ),
        replace(RECORD, seed=2, dirty=True),
    ]
    assert dict(provenance([RECORD, *others])) == {
        "runs": "4",
        "seeds": "0 to 2",
        "cost": "1.9 hours, all runs one after another",
        "hardware": "An <abacus>, 1 of 2 cores; A GPU, 4 of 8 cores",
        "dates": "2030-01-02 to 2030-02-01",
        "commits": "01234567, outside a checkout, 01234567 with changes",
        "versions": "torch 2.13.0, Python 3.11",
    }
    assert provenance([]) == []


@pytest.mark.parametrize(("seconds", "said"), [(42.4, "42 s"), (720, "12.0 minutes"), (7200, "2.0 hours")])
def test_cost_is_readable(seconds, said):
    assert dict(provenance([replace(RECORD, seconds=seconds)]))["cost"].startswith(said)


def test_a_date_that_was_not_recorded():
    assert dict(provenance([replace(RECORD, date="")]))["dates"] == "not recorded"


def test_a_training_on_the_cpu_of_a_machine_with_a_gpu():
    hardware = {"cpu": "x", "cores": 8, "threads": 4, "gpu": "A GPU"}
    record = replace(RECORD, hardware=hardware, configuration={"training": {"device": "cpu"}})
    assert dict(provenance([record]))["hardware"] == "x, 4 of 8 cores"
