"""The demo's report: one HTML file that needs nothing else, and the verdict in words."""

from __future__ import annotations

from graftlm.report.page import write_report
from graftlm.report.verdict import verdict_lines

__all__ = ["verdict_lines", "write_report"]
