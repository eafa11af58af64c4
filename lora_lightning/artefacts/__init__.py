"""From a trained adapter to what can be shipped: folders that plain transformers loads, with the proof that they do.

Nothing here trains, and nothing here parses a command line; a folder is written completely or not at all.
"""

from lora_lightning.artefacts.allocating import allocate
from lora_lightning.artefacts.allocation import Allocation, LayerRank
from lora_lightning.artefacts.compress_results import CompressResult, RankMeasurement
from lora_lightning.artefacts.compressing import compress
from lora_lightning.artefacts.exporting import export_adapter
from lora_lightning.artefacts.merging import merge
from lora_lightning.artefacts.results import FreshProcessCheck, MergeMeasurement, MergeResult, MetricEstimate

__all__ = [
    "Allocation",
    "CompressResult",
    "FreshProcessCheck",
    "LayerRank",
    "MergeMeasurement",
    "MergeResult",
    "MetricEstimate",
    "RankMeasurement",
    "allocate",
    "compress",
    "export_adapter",
    "merge",
]
