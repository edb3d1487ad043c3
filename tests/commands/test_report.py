"""`echo-ska report` at the command line."""

from typer.testing import CliRunner

from echo_ska.cli import app
from echo_ska.experiments.claims import CLAIMS


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in ("report", *arguments)], env={"ECHO_SKA_DEBUG": "0"})


def test_a_page_is_written_and_the_verdicts_printed(tmp_path):
    (tmp_path / "transfer.jsonl").touch()
    result = run("--results", tmp_path, "-o", tmp_path / "r.html")
    assert result.exit_code == 0, result.output
    assert result.stdout.count("not measured yet") == len(CLAIMS)
    assert "Claim 11" in (tmp_path / "r.html").read_text()


def test_what_cannot_be_is_one_sentence(tmp_path):
    (tmp_path / "transfer.jsonl").write_text("not a record\n")
    (tmp_path / "empty").mkdir()
    for words, arguments in (
        ("is not a folder", ["--results", tmp_path / "absent", "-o", tmp_path / "r.html"]),
        ("holds no record", ["--results", tmp_path / "empty", "-o", tmp_path / "r.html"]),
        ("must end in .html", ["--results", tmp_path, "-o", tmp_path / "r.pdf"]),
        ("does not exist", ["--results", tmp_path, "-o", tmp_path / "absent" / "r.html"]),
        ("Line 1 of", ["--results", tmp_path, "-o", tmp_path / "r.html"]),
    ):
        result = run(*arguments)
        assert result.exit_code == 1
        assert words in result.stderr
        assert result.stderr.count("\n") == 1
    assert not (tmp_path / "r.html").exists()
