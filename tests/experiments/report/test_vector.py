"""Pictures beside each other on one page."""

import re
import xml.etree.ElementTree as ElementTree

from matplotlib.figure import Figure

from echo_ska.experiments.report.vector import inline_svg
from echo_ska.experiments.trials.figures import save


def draw(path):
    figure = Figure(figsize=(3, 2))
    axes = figure.subplots()
    axes.plot([1, 2], [3, 4], marker="o")
    axes.imshow([[1, 2]])
    axes.set_title("1 < 2")
    save(figure, path)


def test_pictures_keep_their_text_and_share_no_name():
    one, other = (inline_svg(draw, key, "What <it> shows") for key in ("one", "other"))
    names = []
    for svg in (one, other):
        parsed = ElementTree.fromstring(svg)
        assert parsed.attrib["role"] == "img"
        assert parsed[0].text == "What <it> shows"
        assert "1 &lt; 2" in svg
        found = set(re.findall(r'\bid="([^"]*)"', svg))
        assert set(re.findall(r"url\(#([^)]*)\)", svg)) | set(re.findall(r'href="#([^"]*)"', svg)) <= found
        names.append(found)
    assert not names[0] & names[1]
    assert inline_svg(draw, "one", "What <it> shows") == one


def test_nothing_drawn_is_no_picture():
    assert inline_svg(lambda path: False, "key", "text") is None
