"""Variants of LoRA, one module each.

Nothing here knows Lightning; what every adapter has in common is in `lora`.
"""
