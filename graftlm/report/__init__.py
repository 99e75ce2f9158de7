"""Reports: one HTML file that needs nothing else, and the verdict in words."""

from __future__ import annotations

from graftlm.report.audit_page import write_audit_report
from graftlm.report.audit_verdict import audit_verdict
from graftlm.report.page import agreement_section, losses_section
from graftlm.report.prune_page import write_prune_report
from graftlm.report.reinforce_page import reinforce_verdict, write_reinforce_report
from graftlm.report.study_page import write_study_report
from graftlm.report.sweep_page import sweep_verdict, write_sweep_report

__all__ = [
    "agreement_section",
    "audit_verdict",
    "losses_section",
    "reinforce_verdict",
    "sweep_verdict",
    "write_audit_report",
    "write_prune_report",
    "write_reinforce_report",
    "write_study_report",
    "write_sweep_report",
]
