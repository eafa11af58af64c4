"""The share of its weights that adapters reach in each mixture of experts; writes docs/mixtures.md.

Models have the sizes of transformers' default configuration, which is that of a published model, and no storage.

Example:
    python benchmarks/mixtures.py
"""

import sys
import warnings
from collections.abc import Iterator
from math import prod
from pathlib import Path

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

sys.path.insert(0, str(Path(__file__).parent.parent))

from lora_lightning.lora.config import LoraSettings
from lora_lightning.lora.families import FAMILIES
from lora_lightning.lora.target_modules import layer_features, linear_layers, weights_outside_linear_layers
from lora_lightning.lora.target_parameters import parameters_to_suggest
from lora_lightning.lora.targets import find_targets

PAGE = Path(__file__).parent.parent / "docs/mixtures.md"
HEAD = "lm_head"
TOP = """# Mixtures of experts

The experts of a layer are one three-dimensional parameter, not linear layers, so `target_modules: all-linear` leaves
them frozen: when training starts, a warning says which share of the weights that is, and what to write instead:

```yaml
model:
  init_args:
    lora:
      r: 8
      lora_dropout: 0 # PEFT changes the parameter itself, where no input can be dropped
      target_modules: all-linear # or [] for the experts alone
      target_parameters: [mlp.experts.gate_up_proj, mlp.experts.down_proj]
      exclude_modules: [layers.0.mlp.experts] # leaves modules out
```

`configs/variants/target_parameters.yaml` is a complete example. `target_parameters` has PEFT's meaning: each entry is
the end of a parameter's name, and every expert gets an update of its own of rank `r`. `rank_pattern`, `alpha_pattern`
and `layers_to_transform` apply to parameters as they do to modules. DoRA, AdaLoRA, LoRA-FA, initializations other than
`true` and `gaussian`, FSDP2 and parameters that bitsandbytes quantizes are refused before any weights load.

- **Measurements**: norms (`adapter_norms.parquet`) are those of all experts of a parameter together, and rank metrics
  (`rank_utilization.parquet`) their means; `rank_utilization.json` has each expert, as `<parameter>[<number>]`.
  The merge check compares each expert's weight with W + dW.
- **QLoRA**: bitsandbytes quantizes linear layers only. When training starts, a warning gives the bytes of the experts,
  which stay in 16 or 32 bits.
- **Layers named like former experts**: before transformers 5 experts were linear layers, such as `gate_proj`, and PEFT
  still takes these names for experts if they belong to a dense or shared MLP (DeepSeek-V3, GLM 4.5, Qwen3-Next, ...).
  Presets leave such layers out; `target_parameters` reaches their weights, as `mlp.shared_experts.gate_proj.weight`.
- The gradient of an expert's factors is zero in a step in which no token is routed to it.

The table was written by `python benchmarks/mixtures.py`: the share of the weights outside embeddings and head that get
an adapter, by `all-linear` alone and with `target_parameters`. What is left is mostly the router.

| `model_type` | weights | `all-linear` | and `target_parameters` | entries of `target_parameters` |
| --- | --- | --- | --- | --- |
"""


def rows() -> Iterator[str]:
    """The table's rows, one for each family with experts in one parameter."""
    for family in sorted(FAMILIES):
        model = build(family)
        if model is not None and (names := parameters_to_suggest(model, [HEAD])):
            yield row(family, model, names)


def build(family: str) -> PreTrainedModel | None:
    """A language model of the default configuration's sizes, without storage; `None` if transformers makes none."""
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(CONFIG_MAPPING[family]())  # type: ignore[no-any-return]
    except (TypeError, ValueError):  # no language model, or no default size
        return None


def row(family: str, model: PreTrainedModel, names: list[str]) -> str:
    """One family's row.

    Args:
        family: `model_type`.
        model: Without storage.
        names: From `parameters_to_suggest`.

    Returns:
        A line of Markdown.
    """
    layers = {name: prod(layer_features(layer)) for name, layer in linear_layers(model, [HEAD]).items()}
    sizes = weights_outside_linear_layers(model, [HEAD]) | layers
    shares = []
    for settings in (LoraSettings(), LoraSettings(lora_dropout=0.0, target_parameters=names)):
        targets = find_targets(model, settings, [HEAD])
        reached = {
            *targets.modules,
            *(name.removesuffix(".weight") for name in targets.parameters),
            *targets.parameters,
        }
        shares.append(sum(size for name, size in sizes.items() if name in reached) / sum(sizes.values()))
    entries = ", ".join(f"`{name}`" for name in names)
    return f"| {family} | {sum(sizes.values()) / 1e9:.1f} B | {shares[0]:.1%} | {shares[1]:.1%} | {entries} |"


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    PAGE.write_text(TOP + "".join(f"{each}\n" for each in rows()), encoding="utf-8")
    print(PAGE)
