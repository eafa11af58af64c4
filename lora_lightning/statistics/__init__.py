"""Paired differences and intervals over examples: NumPy and SciPy alone.

Nothing here knows a model, a trainer or a file; arrays go in, numbers come out.
"""

from lora_lightning.statistics.jackknife import Interval, jackknife_interval
from lora_lightning.statistics.recovery import Recovery, recovery_ratio
from lora_lightning.statistics.study_results import ConfigurationResults, Metric, Scale, StudyResults

__all__ = [
    "ConfigurationResults",
    "Interval",
    "Metric",
    "Recovery",
    "Scale",
    "StudyResults",
    "jackknife_interval",
    "recovery_ratio",
]
