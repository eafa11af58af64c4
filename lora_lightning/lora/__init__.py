"""Mathematics on torch and PEFT alone that builds, changes and merges adapted models.

Nothing here imports Lightning, loads pretrained weights, or reports; what measures adapters is in `analysis`.
"""

from lora_lightning.lora.config import LoraSettings

__all__ = ["LoraSettings"]
