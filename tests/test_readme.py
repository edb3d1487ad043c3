"""The Python blocks of the README and of docs/ run as they stand, and the files they point to exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]
PAGES = {
    str(path.relative_to(CHECKOUT)): re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)
    for path in (CHECKOUT / "README.md", *sorted((CHECKOUT / "docs").glob("*.md")))
}


@pytest.mark.parametrize("page", [page for page, blocks in PAGES.items() if blocks])
def test_the_python_blocks_of_a_page_run_one_after_the_other(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # some write files
    names: dict[str, object] = {}
    for number, block in enumerate(PAGES[page]):
        exec(compile(block, f"{page} block {number}", "exec"), names)


def test_there_are_python_blocks():
    assert len(PAGES["README.md"]) >= 2
    assert len(PAGES["docs/memory.md"]) >= 4
    assert len(PAGES["docs/contexts.md"]) >= 4
    assert len(PAGES["docs/huggingface.md"]) >= 6


@pytest.mark.parametrize(
    "document", ["README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in CHECKOUT.glob("docs/*.md"))]
)
def test_links_lead_somewhere(document):
    text = (CHECKOUT / document).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if not target.startswith("http"):
            assert (CHECKOUT / document).parent.joinpath(target).exists(), f"{document} points to {target}"
