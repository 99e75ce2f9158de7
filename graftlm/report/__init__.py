"""Reports: one HTML file that needs nothing else, and the verdict in words."""

from __future__ import annotations

from graftlm.report.audit_page import write_audit_report
from graftlm.report.audit_verdict import audit_verdict
from graftlm.report.page import write_report
from graftlm.report.verdict import verdict_lines

__all__ = ["audit_verdict", "verdict_lines", "write_audit_report", "write_report"]
