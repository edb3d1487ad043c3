"""The Python blocks of the README and of docs/ run as they stand, and the files they point to exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]
BLOCKS = {
    f"{path.relative_to(CHECKOUT)} block {number}": block
    for path in (CHECKOUT / "README.md", *sorted((CHECKOUT / "docs").glob("*.md")))
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL))
}


@pytest.mark.parametrize("name", BLOCKS)
def test_python_blocks_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # some write files
    exec(compile(BLOCKS[name], name, "exec"), {})


def test_there_are_python_blocks():
    documents = [name.split()[0] for name in BLOCKS]
    assert documents.count("README.md") >= 2
    assert documents.count("docs/memory.md") >= 4


@pytest.mark.parametrize(
    "document", ["README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in CHECKOUT.glob("docs/*.md"))]
)
def test_links_lead_somewhere(document):
    text = (CHECKOUT / document).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if not target.startswith("http"):
            assert (CHECKOUT / document).parent.joinpath(target).exists(), f"{document} points to {target}"
