"""The files of a report."""

from ..report import FILE, Report
from .html import report_html
from .markdown import report_markdown


def report_files(report: Report) -> dict[str, str]:
    """Their texts by their names: ``report.json``, the source, and the two that people read."""
    return {
        FILE: report.model_dump_json(indent=1) + "\n",
        "report.md": report_markdown(report),
        "report.html": report_html(report),
    }
