"""Train, measure and export LoRA and QLoRA adapters with PyTorch Lightning.

Importing this package loads nothing heavy. Classes are imported from its subpackages, for example
`lora_lightning.tasks.SequenceClassificationTask` and `lora_lightning.datamodules.Clinc150DataModule`.
"""

__version__ = "0.1.0"
