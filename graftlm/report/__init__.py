"""An HTML toolkit that knows no part: one file that needs nothing else."""

from __future__ import annotations

from graftlm.lazy import moved_attributes

__getattr__ = moved_attributes(
    __name__,
    {
        "agreement_section": "graftlm.heads.page",
        "audit_verdict": "graftlm.auditing.verdict",
        "losses_section": "graftlm.heads.page",
        "reinforce_verdict": "graftlm.reinforce.page",
        "write_audit_report": "graftlm.auditing.page",
        "write_prune_report": "graftlm.pruning.page",
        "write_reinforce_report": "graftlm.reinforce.page",
    },
)
