"""Reports as web pages: one file each, made of the facts that a command gives as JSON (docs/reports.md)."""

from ggufmerge.report.html.drawing import check_drawing
from ggufmerge.report.html.page import is_report
from ggufmerge.report.html.reports import REPORTED, report

__all__ = ["REPORTED", "check_drawing", "is_report", "report"]
