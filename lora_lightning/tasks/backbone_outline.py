"""The backbone of a task without its weights: on the meta device, with what its checkpoint lacks."""

from transformers import AutoModelForCausalLM, PretrainedConfig

from lora_lightning.backbones import LoadedBackbone
from lora_lightning.backbones.finished_head import match_head_to_labels
from lora_lightning.backbones.head_modules import modules_beside_base
from lora_lightning.backbones.loading import build_without_storage, load_model, renamed_weights
from lora_lightning.backbones.local_files import has_weights, local_folder
from lora_lightning.tasks.base import AdaptationTask


def backbone_without_storage(task: AdaptationTask, notes: list[str]) -> LoadedBackbone:
    """Builds the backbone of a task as `from_pretrained` would, from the names of its weights alone.

    Args:
        task: Knows its labels.
        notes: Gets a sentence on what was assumed.

    Returns:
        A model on the meta device, or whose values are no values; and the modules that its checkpoint lacks, which are
        assumed if the weights are not on this machine, or in a GGUF file.

    Raises:
        LoraLightningError: If a setting does not fit the architecture, or the backbone cannot be found.
    """
    config = task.load_config()
    folder = local_folder(task.backbone)
    renamed = None
    if has_weights(folder):  # their names alone are read
        if task.model_class is not AutoModelForCausalLM:
            renamed = renamed_weights(build_without_storage(task.model_class, config))
        loaded = load_model(task.model_class, str(folder), config, key_mapping=renamed, values=False)
    else:
        loaded = _assumed_backbone(task, config, notes)
    return match_head_to_labels(loaded, task.backbone) if _is_classifier(task) else loaded


def _assumed_backbone(task: AdaptationTask, config: PretrainedConfig, notes: list[str]) -> LoadedBackbone:
    """A model whose weights are not looked at: they are taken to lack a new head, and nothing else."""
    model = build_without_storage(task.model_class, config)
    is_finished = type(model).__name__ in (config.architectures or [])
    if task.model_class is AutoModelForCausalLM or is_finished:
        return LoadedBackbone(model, [])
    # Without dropout and whatever else has nothing to train: PEFT would look for modules of such a name.
    lacked = [name for name in modules_beside_base(model) if any(True for _ in model.get_submodule(name).parameters())]
    notes.append(
        "The weights are not on this machine, or in a GGUF file, which takes long to read; they are assumed to lack "
        f"only the head ({', '.join(lacked) or 'none'}), which is trained in full."
    )
    return LoadedBackbone(model, lacked)


def _is_classifier(task: AdaptationTask) -> bool:
    return hasattr(task, "label_space")
