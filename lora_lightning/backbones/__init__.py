"""Where pretrained weights come from: the hub, a local folder, or an installed package."""

from lora_lightning.backbones.loading import (
    LoadedBackbone,
    check_adapter_settings,
    load_classification_config,
    load_config,
    load_sequence_classifier,
    load_tokenizer,
    uses_token_types,
)
from lora_lightning.backbones.source import hub_is_reachable, resolve_backbone

__all__ = [
    "LoadedBackbone",
    "check_adapter_settings",
    "hub_is_reachable",
    "load_classification_config",
    "load_config",
    "load_sequence_classifier",
    "load_tokenizer",
    "resolve_backbone",
    "uses_token_types",
]
