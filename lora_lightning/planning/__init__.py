"""What a training would need, from its settings alone: adapted modules, trainable parameters, bytes, peak memory.

Nothing here loads weights or trains: models live on the meta device, and their steps are traced without values.
"""

from lora_lightning.planning.plan import plan_training
from lora_lightning.planning.results import TrainingPlan

__all__ = ["TrainingPlan", "plan_training"]
