"""The settings of this package that make the adapter of a PEFT folder again, and what contradicts them."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from transformers import PreTrainedModel

from lora_lightning.compat.peft import first_matching_pattern
from lora_lightning.errors import CheckpointError, ConfigurationError, LoraLightningError
from lora_lightning.lora.config import LoraSettings
from lora_lightning.lora.injection import modules_trained_in_full
from lora_lightning.lora.parameter_names import (
    is_adapter_parameter,
    is_embedding_factor,
    is_token_update,
    name_saved_once,
    pretrained_name,
    saved_module_name,
)
from lora_lightning.lora.target_modules import PRESETS, ends_with, linear_layers
from lora_lightning.lora.targets import Targets, find_targets, rank_of

SAME = ("r", "lora_alpha", "lora_dropout", "bias", "use_rslora", "use_dora", "ensure_weight_tying")
COMPARED = ("bias", "use_rslora", "use_dora", "init_lora_weights", "ensure_weight_tying")
STARTS_KEPT = ("pissa", "olora")  # the adapter's start is a part of the base, and stays there
# Read elsewhere, or of no effect once an adapter is trained.
OTHERS = {
    *("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    *("inference_mode", "fan_in_fan_out", "init_lora_weights", "rank_pattern", "alpha_pattern", "target_parameters"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save"),
    *("trainable_token_indices", "eva_config", "corda_config", "lora_ga_config", "loftq_config", "runtime_config"),
    *("megatron_core", "qalora_group_size", "modules_to_tie", "target_modules_to_tie"),
}
GROUPS = {
    "target_modules": ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    "r": ("r", "rank_pattern"),
    "lora_alpha": ("lora_alpha", "alpha_pattern"),
}
LONGEST = 60  # of a value in a message


@dataclass(frozen=True)
class SavedAdapter:
    """A PEFT adapter in a file, and the model that it belongs on.

    Attributes:
        source: What to call it in messages.
        content: Of `adapter_config.json`.
        names: Of the weights in its file.
        model: Without storage and without adapters, with the task's head.
        beside: Modules that train in full in any case, such as the head.
        never_adapted: Other modules that get no adapter.
    """

    source: str
    content: Mapping[str, Any]
    names: Collection[str]
    model: PreTrainedModel
    beside: Collection[str] = ()
    never_adapted: Collection[str] = ()

    def settings(self) -> LoraSettings:
        """The settings that make such an adapter.

        Raises:
            ConfigurationError: If this package has no option for something in it, or if it does not fit the model.
            CheckpointError: If a value in `adapter_config.json` has the wrong type.
        """
        self._check_supported()
        try:
            return self._in_fewer_words(self._settings())
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            msg = f"the adapter_config.json of {self.source} holds values of wrong types ({error}); save it again."
            raise CheckpointError(msg) from error

    def _settings(self) -> LoraSettings:
        found = LoraSettings(
            **{name: self.content[name] for name in SAME if self.content.get(name) is not None},
            target_modules=self._modules(),
            target_parameters=list(self.content.get("target_parameters") or []) or None,
            modules_to_save=self._modules_in_full() or None,
            init_lora_weights=start if (start := self.content.get("init_lora_weights")) in STARTS_KEPT else True,
            trainable_token_indices=self._tokens(),
        )
        targets = self._targets(found)
        names = [*targets.modules, *targets.parameters]
        return replace(
            found,
            lora_alpha=float(found.lora_alpha),
            rank_pattern=_applied(self.content.get("rank_pattern"), names),
            alpha_pattern=_applied(self.content.get("alpha_pattern"), names),
        )

    def check_agreement(self, settings: LoraSettings, given: Mapping[str, Any]) -> None:
        """Refuses settings that contradict the adapter.

        Args:
            settings: Of the adapter.
            given: The user's, by name; `lora_dropout` may be any.

        Raises:
            ConfigurationError: Names the first that does.
        """
        for name in ("adalora", "eva_config"):
            if given.get(name) is not None:
                msg = (
                    f"model.lora.{name} is set, but model.adapter continues the adapter {self.source}, whose start and "
                    "ranks are given; leave one of the two out."
                )
                raise ConfigurationError(msg)
        asked = replace(settings, **given)
        wanted, own = self._structure(asked), self._structure(settings)
        for group, value in own.items():
            if wanted[group] == value:
                continue
            members = GROUPS.get(group, (group,))
            name = next((name for name in members if getattr(asked, name) != getattr(settings, name)), group)
            msg = (
                f"model.lora.{name} is {_short(getattr(asked, name))}, but the adapter {self.source} has "
                f"{_short(getattr(settings, name))}, and model.adapter continues it as it is; set model.lora.{name} to "
                "that or leave it out, or start a new adapter without model.adapter."
            )
            raise ConfigurationError(msg)

    def _structure(self, settings: LoraSettings) -> dict[str, Any]:
        """What settings make of the model, however they are written."""
        targets = self._targets(settings)
        names = [*targets.modules, *targets.parameters]
        alphas = settings.alpha_pattern or {}
        return {
            "target_modules": sorted(targets.modules),
            "target_parameters": sorted(targets.parameters),
            "modules_to_save": sorted(self._in_full(settings)),
            "r": {name: rank_of(name, settings) for name in names},
            "lora_alpha": {
                name: alphas.get(first_matching_pattern(list(alphas), name), settings.lora_alpha) for name in names
            },
            "trainable_token_indices": sorted(settings.trainable_token_indices or []),
            **{name: getattr(settings, name) for name in COMPARED},
        }

    def _in_full(self, settings: LoraSettings) -> list[str]:
        return modules_trained_in_full(self.model, settings, self.beside)

    def _targets(self, settings: LoraSettings) -> Targets:
        return find_targets(self.model, settings, exclude=[*self._in_full(settings), *self.never_adapted])

    def _check_supported(self) -> None:
        known = {field.name for field in fields(LoraSettings)} | OTHERS
        unknown = [name for name, value in self.content.items() if name not in known and value not in (None, False, {})]
        if unknown:
            msg = (
                f"the adapter {self.source} has {unknown[0]} {_short(self.content[unknown[0]])} in its "
                "adapter_config.json, which cannot be continued, because model.lora has no such option; merge it into "
                "its base with `lora-lightning merge`, and train a new adapter on the result."
            )
            raise ConfigurationError(msg)
        if self.content.get("peft_type") != "LORA":
            msg = (
                f"the adapter {self.source} is of type {self.content.get('peft_type')}, whose ranks cannot be chosen "
                "further from the file alone; resume its run, or export it as plain LoRA, as this package does."
            )
            raise ConfigurationError(msg)

    def _modules(self) -> list[str]:
        """The modules of which the file has factors; PEFT adapts exactly those, whatever else its targets match."""
        parameters = self.content.get("target_parameters") or []
        holders = {
            name.rpartition(".")[0]
            for name, _ in self.model.named_parameters()
            if any(ends_with(name, parameter) for parameter in parameters)
        }
        layers = linear_layers(self.model, self.never_adapted)
        found: dict[str, None] = {}
        for name in filter(is_adapter_parameter, self.names):
            module = saved_module_name(name)
            if module in holders:
                continue
            if is_embedding_factor(name) or module not in layers:
                raise ConfigurationError(self._cannot_adapt(module))
            found[module] = None
        return list(found)

    def _cannot_adapt(self, module: str) -> str:
        names = {name for name, _ in self.model.named_modules()}
        why = f"which {type(self.model).__name__} does not have; give the base model that it was trained on"
        if module in names:
            why = (
                "which gets no adapter here; merge it into its base with `lora-lightning merge`, and train a new "
                "adapter on the result"
            )
        return f"the adapter {self.source} adapts {module}, {why}."

    def _modules_in_full(self) -> list[str]:
        """The modules of which the file has all weights, by PEFT's rule: a name in `modules_to_save` ends theirs."""
        ends = tuple(self.content.get("modules_to_save") or ())
        found: dict[str, None] = {}
        for name in self.names:
            if is_adapter_parameter(name) or is_token_update(name):
                continue
            parts = pretrained_name(name_saved_once(name)).split(".")[:-1]
            outer = [".".join(parts[:count]) for count in range(1, len(parts) + 1)]
            found |= dict.fromkeys(next(([module] for module in outer if module.endswith(ends)), []))
        return list(found)

    def _tokens(self) -> list[int] | None:
        saved = self.content.get("trainable_token_indices")
        if isinstance(saved, Mapping):
            embeddings = self.model.get_input_embeddings()
            own = next(name for name, module in self.model.named_modules() if module is embeddings)
            others = [name for name in saved if not ends_with(own, name)]
            if others or len(saved) != 1:
                msg = (
                    f"the adapter {self.source} trains tokens of {', '.join(others or saved)}, but model.lora trains "
                    f"those of {own} alone; merge it into its base with `lora-lightning merge` first."
                )
                raise ConfigurationError(msg)
            (saved,) = saved.values()
        return [int(token) for token in saved] if saved else None

    def _in_fewer_words(self, settings: LoraSettings) -> LoraSettings:
        """Names targets by a preset or as `adapter_config.json` does, if that means the same modules."""
        written, full = self.content.get("target_modules"), self._structure(settings)
        if not full["target_modules"]:
            return settings
        choices: list[str | list[str]] = [*reversed(PRESETS), *([sorted(written)] if isinstance(written, list) else [])]
        for targets in choices:
            try:
                shorter = replace(settings, target_modules=targets)
                if self._structure(shorter) == full:
                    return shorter
            except LoraLightningError:  # a preset that does not know the architecture, a name that matches nothing
                continue
        return settings


def _applied(pattern: Mapping[str, Any] | None, names: Iterable[str]) -> dict[str, Any] | None:
    """The entries that decide something; PEFT ignores others silently, and `check_patterns` refuses them."""
    keys = list(pattern or {})
    used = {first_matching_pattern(keys, name) for name in names}
    return {key: value for key, value in (pattern or {}).items() if key in used} or None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
