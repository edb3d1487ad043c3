"""Labels of lines and points keep apart, and where the reader looks for them."""

import itertools

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from echo_ska.experiments.trials.comparison import with_count
from echo_ska.experiments.trials.figures import label_lines, label_points


def drawn(count):
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 100)
    figure.draw_without_rendering()
    return figure, axes, [f"model {n}" for n in range(count)]


def text_boxes(figure, axes) -> list[Bbox]:
    figure.draw_without_rendering()
    return [Text.get_window_extent(text) for text in axes.texts]  # without the lines that lead to them


@pytest.mark.parametrize("height", [0.0, 50.0, 100.0])
def test_labels_of_lines_that_end_alike_stay_apart_and_beside_the_axes(height):
    figure, axes, names = drawn(12)
    label_lines(axes, dict.fromkeys(names, (1.0, height)), dict.fromkeys(names, "black"))
    boxes = text_boxes(figure, axes)
    assert len(boxes) == 12
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    frame, middles = axes.get_window_extent(), [(box.y0 + box.y1) / 2 for box in boxes]
    assert frame.y0 - 1 <= min(middles)
    assert max(middles) <= frame.y1 + 1


def test_names_of_points_on_one_spot_touch_neither_it_nor_each_other():
    figure, axes, names = drawn(8)
    label_points(axes, dict.fromkeys(names, (0.5, 50.0)))
    point = axes.transData.transform((0.5, 50.0))
    boxes = text_boxes(figure, axes)
    assert len(boxes) == 8
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    assert not any(box.contains(*point) for box in boxes)


def test_arms_with_fewer_seeds_than_others_say_so():
    results = {"ssm": [object()] * 3, "ska": [object()] * 2, "attention": [object()]}
    assert [with_count(arm, results) for arm in results] == ["ssm", "ska (2 seeds)", "attention (1 seed)"]
