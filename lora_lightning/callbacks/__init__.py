"""Lightning callbacks that a user may add in YAML, one file each: a hook gathers, a function of `analysis` computes.

What every run has is in `training`; no mathematics and no plotting is here.
"""

from lora_lightning.callbacks.adapter_norms import AdapterNormMonitor
from lora_lightning.callbacks.frozen_base import FrozenBaseCheck
from lora_lightning.callbacks.generated_samples import GeneratedSamples
from lora_lightning.callbacks.intruder_dimensions import IntruderDimensions
from lora_lightning.callbacks.merge_equivalence import MergeEquivalence
from lora_lightning.callbacks.other_text_loss import OtherTextLoss
from lora_lightning.callbacks.parameter_efficiency import ParameterEfficiency
from lora_lightning.callbacks.rank_utilization import RankUtilizationMonitor
from lora_lightning.callbacks.representation_drift import RepresentationDrift

__all__ = [
    "AdapterNormMonitor",
    "FrozenBaseCheck",
    "GeneratedSamples",
    "IntruderDimensions",
    "MergeEquivalence",
    "OtherTextLoss",
    "ParameterEfficiency",
    "RankUtilizationMonitor",
    "RepresentationDrift",
]
