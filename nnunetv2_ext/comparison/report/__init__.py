"""The report of a comparison: a page, the same in Markdown, tables in LaTeX, and figures as files."""

from nnunetv2_ext.comparison.report.write import write_report

__all__ = ["write_report"]
