"""Pictures inside a page: an experiment's own drawing as SVG, with a text for those who do not see it."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from html import escape
from pathlib import Path

_FONTS = re.compile(r"'DejaVu Sans'[^;\"]*")
_SIZE = re.compile(r'<svg [^>]*?width="([\d.]+)pt"[^>]*?height="([\d.]+)pt"[^>]*>', re.DOTALL)
_HEAD = re.compile(r"^.*?(?=<svg )", re.DOTALL)
_METADATA = re.compile(r"\s*<metadata>.*?</metadata>", re.DOTALL)
_STYLE = re.compile(r"\s*<style type=\"text/css\">.*?</style>", re.DOTALL)
_NAMED = re.compile(r'(\bid="|url\(#|href="#)')
_PLAIN_ID = re.compile(r' id="[^"]*"')
_LONG_NUMBER = re.compile(r"(\d+\.\d{2})\d+")


def inline_svg(draw: Callable[[Path], object], key: str, text: str) -> str | None:
    """An `<svg>` element that a page can hold beside others.

    Args:
        draw: draws to a path that ends in .svg; draws nothing and returns False where there is nothing to draw.
        key: of letters, digits and hyphens, other than that of every other picture of the page.
        text: what the picture shows.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{key}.svg"
        if draw(path) is False:
            return None
        drawn = path.read_text(encoding="utf-8")
    found = _SIZE.search(drawn)
    if found is None:
        raise RuntimeError("matplotlib wrote an SVG whose size cannot be read.")
    width, height = (float(size) for size in found.groups())
    body = drawn[found.end() :]
    body = _METADATA.sub("", _STYLE.sub("", body))
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]*)', body))
    # Names that nothing refers to are only weight; the others must differ between the pictures of a page.
    body = _PLAIN_ID.sub(lambda name: name[0] if name[0][5:-1] in used else "", body)
    body = _NAMED.sub(lambda name: f"{name[1]}{key}-", body)
    body = _LONG_NUMBER.sub(r"\1", _FONTS.sub("sans-serif", body))
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" role="img" '
        f'viewBox="0 0 {width:g} {height:g}" style="--width: {width:g}px" aria-labelledby="{key}-text" '
        f'class="picture"><title id="{key}-text">{escape(text)}</title>'
        "<style>path, line, use { stroke-linejoin: round; stroke-linecap: butt }</style>"
    )
    return head + body
