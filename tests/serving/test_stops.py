import random

import pytest

from echo_ska.serving.stops import StopStrings


def passed(stops, pieces):
    stop = StopStrings(stops)
    return "".join(stop.push(piece) for piece in pieces) + stop.close(), stop.found


@pytest.mark.parametrize("size", [1, 2, 3, 50])
def test_the_text_before_a_stop_comes_through_in_any_pieces(size):
    text = "one two thr three\n\nfour"

    def cut(stops):
        return passed(stops, [text[at : at + size] for at in range(0, len(text), size)])

    assert cut(()) == (text, False)
    assert cut(("three",)) == ("one two thr ", True)
    assert cut(("three\n\nf", "never")) == ("one two thr ", True)
    assert cut(("four!", "xyz")) == (text, False)
    assert cut(("one",)) == ("", True)


def test_what_may_begin_a_stop_is_held_back_and_nothing_else():
    stop = StopStrings(("END",))
    assert [stop.push(piece) for piece in ("a", "E", "N", "E", "ND", "more")] == ["a", "", "", "EN", "", ""]
    assert stop.found
    assert stop.close() == ""


def test_it_is_the_search_in_the_whole_text():
    draw = random.Random(0)
    for _ in range(300):
        text = "".join(draw.choice("ab") for _ in range(12))
        stop = "".join(draw.choice("ab") for _ in range(draw.randint(1, 4)))
        assert passed((stop,), list(text)) == (text.partition(stop)[0], stop in text)
