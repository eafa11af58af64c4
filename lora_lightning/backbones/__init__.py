"""Where pretrained weights come from (the hub, a local folder, an installed package), in which dtype, and their export.

Nothing here trains; adapters themselves are made in `lora`.
"""

from lora_lightning.backbones.finished_head import load_sequence_classifier
from lora_lightning.backbones.loading import (
    LoadedBackbone,
    check_adapter_settings,
    load_classification_config,
    load_config,
    load_original_weights,
    load_tokenizer,
    position_limit,
    uses_token_types,
)
from lora_lightning.backbones.question_answering import (
    check_question_answering_settings,
    load_question_answerer,
    load_question_answering_config,
)
from lora_lightning.backbones.remote_code import trust_remote_code
from lora_lightning.backbones.source import hub_is_reachable, resolve_backbone
from lora_lightning.backbones.unused_options import check_idle_options

__all__ = [
    "LoadedBackbone",
    "check_adapter_settings",
    "check_idle_options",
    "check_question_answering_settings",
    "hub_is_reachable",
    "load_classification_config",
    "load_config",
    "load_original_weights",
    "load_question_answerer",
    "load_question_answering_config",
    "load_sequence_classifier",
    "load_tokenizer",
    "position_limit",
    "resolve_backbone",
    "trust_remote_code",
    "uses_token_types",
]
