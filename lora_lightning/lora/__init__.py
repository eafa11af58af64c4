"""Adapter mathematics on torch and PEFT alone; nothing here knows Lightning."""

from lora_lightning.lora.config import LoraSettings

__all__ = ["LoraSettings"]
