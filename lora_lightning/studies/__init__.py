"""Studies: from trials, or a table of results, to verdicts that say how sure they are.

The statistics are in `lora_lightning.statistics` and the pages in `lora_lightning.reports`. Nothing here parses a
command line, and auditing a table imports no torch.
"""

from lora_lightning.studies.audit import StudyAudit, audit_results

__all__ = ["StudyAudit", "audit_results"]
