"""A small dataset with the columns of FineWeb-Edu, and its layout on the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/*/*
- config_name: sample-10BT
  data_files:
  - split: train
    path: sample/10BT/*
---
# A dataset
"""


def rows_of(start: int, stop: int) -> dict[str, list[Any]]:
    """Columns of the rows start ... stop - 1."""
    numbers = range(start, stop)
    return {
        "text": [f"Page {number}. " + "word " * (number % 7) for number in numbers],
        "id": [f"<urn:uuid:{number:08d}>" for number in numbers],
        "dump": ["CC-MAIN-2024-10" for _ in numbers],
        "url": [f"https://example.org/{number}" for number in numbers],
        "file_path": ["s3://commoncrawl/crawl-data/part.warc.gz" for _ in numbers],
        "language": ["en" for _ in numbers],
        "language_score": [0.9 for _ in numbers],
        "token_count": [10 + number for number in numbers],
        "score": [2.5 + number / 100 for number in numbers],
        "int_score": [3 for _ in numbers],
    }


def write_dataset(folder: Path) -> Path:
    """Three files of the sample, 25 rows in groups of 4, and other rows beside it."""
    import pyarrow
    import pyarrow.parquet

    (folder / "README.md").parent.mkdir(parents=True)
    (folder / "README.md").write_text(CARD)
    for name, start, stop in (
        ("sample/10BT/000_00000.parquet", 0, 10),
        ("sample/10BT/001_00000.parquet", 10, 20),
        ("sample/10BT/002_00000.parquet", 20, 25),
        ("data/CC-MAIN-2024-10/000_00000.parquet", 100, 103),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(pyarrow.table(rows_of(start, stop)), folder / name, row_group_size=4)
    return folder
