"""A page of HTML that says of every claim what the records say."""

from echo_ska.experiments.report.page import write_report

__all__ = ["write_report"]
