import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for `page_files`


@pytest.fixture(scope="session")
def page(tmp_path_factory) -> Path:
    """The report of some records."""
    from page_files import write_records

    from echo_ska.experiments.report import write_report

    folder = tmp_path_factory.mktemp("report")
    write_records(folder / "results")
    write_report(folder / "results", folder / "report.html")
    return folder / "report.html"
