"""An existing PEFT adapter that training continues: its settings, its base model, its labels and its weights."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoTokenizer

from lora_lightning.backbones import load_config, load_tokenizer
from lora_lightning.backbones.adapter_config import ADAPTER_CONFIG, AdapterConfig, read_adapter_config
from lora_lightning.backbones.adapter_labels import read_label_space
from lora_lightning.backbones.adapter_weights import find_adapter_folder, read_adapter_weights
from lora_lightning.backbones.base_identity import BaseIdentity, identify_base
from lora_lightning.backbones.causal_language_modeling import load_causal_lm_config, output_head_name
from lora_lightning.backbones.finished_head import output_layer_name
from lora_lightning.backbones.head_modules import modules_beside_base
from lora_lightning.backbones.loading import build_without_storage
from lora_lightning.backbones.model_card import LANGUAGE_MODEL
from lora_lightning.backbones.saved_base import BASE_MODEL, check_base
from lora_lightning.backbones.source import backbone_identity, resolve_backbone
from lora_lightning.errors import BackboneError, CheckpointError, ConfigurationError
from lora_lightning.lora.config import LoraSettings, QuantizationSettings
from lora_lightning.lora.parameter_names import name_saved_once, pretrained_name
from lora_lightning.lora.peft_settings import SavedAdapter
from lora_lightning.metrics import LabelSpace
from lora_lightning.runs.file_hashes import hash_files
from lora_lightning.tasks.continued_labels import label_order


@dataclass(frozen=True)
class ContinuedAdapter:
    """The adapter in `model.adapter`.

    Attributes:
        source: As the user named it: a folder or a hub id.
        backbone: The base model that it continues on.
        config: Of its folder.
    """

    source: str
    backbone: str
    config: AdapterConfig

    @classmethod
    def find(cls, source: str, backbone: str, auto_class: str | None) -> "ContinuedAdapter":
        """Finds an adapter and reads its configuration.

        Args:
            source: A folder or a hub id.
            backbone: The base model to continue on.
            auto_class: Name of the transformers class of the task; `None` if the task does not declare it.

        Returns:
            The adapter; its weights are not read yet.

        Raises:
            CheckpointError: If there is no such adapter, or its files are damaged.
            ConfigurationError: If it is of a kind that cannot be continued, or for another class.
        """
        if auto_class is None:
            msg = (
                f"model.adapter is {source!r}, but the task does not declare which transformers class it trains, so it "
                "cannot continue an adapter; set its class attribute auto_class, or leave model.adapter out."
            )
            raise ConfigurationError(msg)
        return cls(source, backbone, read_adapter_config(find_adapter_folder(source), auto_class, backbone))

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """The tensors in its file, by PEFT's names."""
        return read_adapter_weights(self.config.folder)

    @cached_property
    def _saved(self) -> SavedAdapter:
        is_language_model = self.config.auto_class == LANGUAGE_MODEL
        load = load_causal_lm_config if is_language_model else load_config
        model = build_without_storage(getattr(transformers, self.config.auto_class), load(self.backbone))
        return SavedAdapter(
            self.source,
            self.config.content,
            list(self.weights),
            model,
            beside=() if is_language_model else modules_beside_base(model),
            never_adapted=[output_head_name(model)] if is_language_model else (),
        )

    def settings(self, given: Mapping[str, Any]) -> LoraSettings:
        """The adapter's settings, with the dropout that the user gave.

        Args:
            given: The user's options of `model.lora`, by name.

        Returns:
            What makes such an adapter on the backbone.

        Raises:
            ConfigurationError: If an option contradicts the adapter, or it does not fit the backbone.
        """
        settings = self._saved.settings()
        self._saved.check_agreement(settings, given)
        if "lora_dropout" in given:
            settings.lora_dropout = given["lora_dropout"]
            settings.__post_init__()
        return settings

    def check_base(self, base: BaseIdentity | None, *, allowed: bool) -> None:
        """Compares the adapter's base model with the backbone, by content if the folder records it, else by name.

        Args:
            base: The backbone's content.
            allowed: Whether the user allows another base.

        Raises:
            CheckpointError: If it is another one, or if nobody can tell, and that is not allowed.
        """
        if allowed:
            return
        saved = self.config.file(f"{BASE_MODEL}.json")
        if check_base({BASE_MODEL: saved}, base, f"the adapter {self.source}", is_frozen=True, allowed=False):
            return
        name = str(self.config.content.get("base_model_name_or_path") or "")
        other = _identify(name)
        if other is not None:
            check_base({BASE_MODEL: other.as_dict()}, base, f"the adapter {self.source}", is_frozen=True, allowed=False)
        elif backbone_identity(name) != backbone_identity(self.backbone):
            msg = (
                f"the adapter {self.source} names the base model {name or 'None'!r}, which is not here, and "
                f"model.backbone is {self.backbone!r}; if they are the same model, correct base_model_name_or_path in "
                f"its {ADAPTER_CONFIG}, or set --allow_other_base true."
            )
            raise CheckpointError(msg)
        else:
            self._check_revision(base)
        warnings.warn(
            f"the adapter {self.source} does not record the content of its base model, so it is not known whether "
            f"{self.backbone} is still the same.",
            stacklevel=2,
        )

    def _check_revision(self, base: BaseIdentity | None) -> None:
        """The newest commit of a base on the hub is loaded, or what a folder or package of the same name holds."""
        revision = self.config.revision
        if revision is None or (base is not None and base.commit is not None and base.commit == revision):
            return
        msg = (
            f"the adapter {self.source} was trained on revision {revision!r} of {self.backbone}, and other revisions "
            "cannot be loaded; download that revision into a folder, set model.backbone and base_model_name_or_path in "
            f"its {ADAPTER_CONFIG} to the folder, or set --allow_other_base true."
        )
        raise CheckpointError(msg)

    def check_quantization(self, settings: QuantizationSettings | None) -> None:
        """Warns of a base that is quantized otherwise than the one that the adapter was trained on.

        Args:
            settings: Of this run.

        Raises:
            CheckpointError: If the adapter's `quantization_config.json` is damaged.
        """
        saved = self.config.quantization()
        if saved is None:
            if settings is not None and self.config.file(f"{BASE_MODEL}.json") is not None:  # others write neither file
                warnings.warn(
                    f"the adapter {self.source} was trained on a base that is not quantized, but the base of this run "
                    "is (model.quantization), so the model does not start where the adapter's training ended.",
                    stacklevel=2,
                )
            return
        bits = 4 if saved.load_in_4bit else 8
        there = (bits, saved.bnb_4bit_quant_type if bits == 4 else "", bits == 4 and saved.bnb_4bit_use_double_quant)  # noqa: PLR2004
        here = (
            None
            if settings is None
            else (
                settings.bits,
                settings.type if settings.bits == 4 else "",  # noqa: PLR2004
                settings.bits == 4 and settings.double_quantization,  # noqa: PLR2004
            )
        )
        if here != there:
            found = "is not quantized" if settings is None else "is quantized otherwise (model.quantization)"
            warnings.warn(
                f"the adapter {self.source} was trained on a base in {bits} bits, but the base of this run {found}, so "
                "the model does not start where the adapter's training ended.",
                stacklevel=2,
            )

    def check_tokenizer(self) -> None:
        """Warns of a tokenizer in the folder that is not used: data and export have that of the backbone."""
        if not (self.config.folder / "tokenizer_config.json").is_file():
            return
        try:
            own = AutoTokenizer.from_pretrained(str(self.config.folder), local_files_only=True, trust_remote_code=False)
        except Exception:  # noqa: BLE001  # a damaged file makes transformers raise anything, and it is not used
            return
        used = load_tokenizer(self.backbone)
        if own.chat_template and own.chat_template != used.chat_template:
            warnings.warn(
                f"the chat template of the adapter {self.source} is not used: this run formats chats with that of the "
                f"tokenizer of {self.backbone}, and exports that; to keep the adapter's, save its tokenizer into a "
                "copy of the base model, give the copy as model.backbone, and set --allow_other_base true.",
                stacklevel=2,
            )
        if own.get_vocab() != used.get_vocab():
            warnings.warn(
                f"the data is read with the tokenizer of {self.backbone}, and the adapter {self.source} has another "
                "vocabulary.",
                stacklevel=2,
            )

    def order_of_labels(self, space: LabelSpace) -> list[int] | None:
        """Where each label of the data is in the adapter's head.

        Args:
            space: The labels of the data.

        Returns:
            Row numbers; `None` if the labels are in the same order.

        Raises:
            CheckpointError: If the adapter has other labels, or labels of another kind.
        """
        own = read_label_space(self.config, self.weights)
        if own is None:
            return None  # its file has no head, and neither has the base: refused when it is loaded
        return label_order(own, space, self.source)

    def weights_in_order(self, order: list[int], model: transformers.PreTrainedModel) -> dict[str, Tensor]:
        """The weights with the rows of the head in the order of the data's labels.

        Args:
            order: From `order_of_labels`.
            model: With the task's head.

        Returns:
            Tensors by PEFT's names.
        """
        head = output_layer_name(model)
        rows = torch.tensor(order)
        return {
            name: tensor[rows] if pretrained_name(name_saved_once(name)).rpartition(".")[0] == head else tensor
            for name, tensor in self.weights.items()
        }

    def provenance(self) -> dict[str, str | None]:
        """Where the adapter came from, for the run's record: its name, its path, and the SHA-256 of its weights."""
        folder = self.config.folder
        paths = [folder / name for name in ("adapter_model.safetensors", "adapter_model.bin")]
        hashes = hash_files([path for path in paths if path.is_file()])
        is_local = Path(self.source).expanduser().is_dir()
        return {
            "adapter": str(Path(self.source).expanduser().resolve()) if is_local else self.source,
            "weights": next(iter(hashes), None),
            "commit": None if is_local else folder.name,
        }


def _identify(base: str) -> BaseIdentity | None:
    """The content of the base that an adapter names; `None` if it is not on this machine."""
    try:
        return identify_base(base) if base and Path(resolve_backbone(base)).is_dir() else None
    except BackboneError:
        return None
