"""The files that a run leaves for its readers."""

from ..report import FILE, Report


def report_files(report: Report) -> dict[str, str]:
    """The text of each file by its name: the data, a Markdown page and an HTML page."""
    return {FILE: report.model_dump_json(indent=1)}
