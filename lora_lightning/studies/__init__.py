"""Studies: from trials, or a table of results, to verdicts that say how sure they are.

The statistics are in `lora_lightning.statistics` and the pages in `lora_lightning.reports`. Nothing here parses a
command line, and auditing a table imports no torch: what trains is imported on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from lora_lightning.studies.audit import StudyAudit, audit_results

if TYPE_CHECKING:
    from lora_lightning.studies.api import StudyReport, run_study

__all__ = ["StudyAudit", "StudyReport", "audit_results", "run_study"]


def __getattr__(name: str) -> object:
    """Imports a name in `__all__` on first use (PEP 562)."""
    if name not in __all__:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(import_module("lora_lightning.studies.api"), name)
