"""Paired differences, intervals, tests, power and verdicts: NumPy and SciPy alone.

Nothing here knows a model, a trainer or a file; arrays and tables go in, numbers and sentences come out.
"""

from lora_lightning.statistics.analysis import StudyAnalysis, analyze_study
from lora_lightning.statistics.jackknife import Interval, jackknife_interval
from lora_lightning.statistics.paired import PairedDifference, paired_difference
from lora_lightning.statistics.recovery import Recovery, recovery_ratio
from lora_lightning.statistics.study_results import ConfigurationResults, Metric, Scale, StudyResults
from lora_lightning.statistics.verdicts import ClaimVerdict, Verdict, claim_verdict

__all__ = [
    "ClaimVerdict",
    "ConfigurationResults",
    "Interval",
    "Metric",
    "PairedDifference",
    "Recovery",
    "Scale",
    "StudyAnalysis",
    "StudyResults",
    "Verdict",
    "analyze_study",
    "claim_verdict",
    "jackknife_interval",
    "paired_difference",
    "recovery_ratio",
]
