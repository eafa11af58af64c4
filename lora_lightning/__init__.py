"""Train, measure and hand over LoRA adapters with PyTorch Lightning.

Importing this package loads nothing heavy; the classes live in its subpackages, for example
`lora_lightning.tasks.SequenceClassificationTask` and `lora_lightning.datamodules.Clinc150DataModule`.
"""

__version__ = "0.1.0"
