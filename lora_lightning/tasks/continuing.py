"""What a task starts from: its backbone, the adapter in `model.adapter`, or a checkpoint, which takes their place."""

from collections.abc import Collection, Mapping
from functools import cached_property
from typing import Any, ClassVar, cast

from lightning.pytorch.trainer.states import TrainerFn
from peft import LoraConfig, PeftModel
from torch import Tensor

from lora_lightning.compat.lightning import trainer_of
from lora_lightning.errors import CheckpointError, ConfigurationError
from lora_lightning.lora.adapter_state import load_adapter_state
from lora_lightning.lora.parameter_names import ADAPTER
from lora_lightning.runs.settings import to_plain_values
from lora_lightning.tasks.continued_adapter import ContinuedAdapter
from lora_lightning.tasks.saving import SavedTask


class ContinuingTask(SavedTask):
    """A task that can continue an existing adapter.

    Attributes:
        adapter: Folder or hub id of the adapter; `None` for a new one.
    """

    auto_class: ClassVar[str | None] = None  # name of the transformers class that it trains
    adapter: str | None

    def __init__(self) -> None:
        super().__init__()
        self._adapter_is_checked = False
        self._adapter_is_loaded = False
        self._adapter_problem: CheckpointError | None = None

    @property
    def is_fitting(self) -> bool:
        """Whether a trainer is training the model."""
        trainer = trainer_of(self)
        return trainer is not None and trainer.state.fn == TrainerFn.FITTING

    @property
    def loads_values(self) -> bool:
        """Whether this process reads the backbone's weights; if the model is sharded, the main process alone does."""
        return self.device_mesh is None or self.trainer.is_global_zero

    @property
    def starts_from_adapter(self) -> bool:
        """Whether a model that is built now needs the adapter; those that resume or are evaluated get a checkpoint."""
        is_evaluated = trainer_of(self) is not None and not self.is_fitting
        return self.adapter is not None and not self.resumes and not is_evaluated

    @cached_property
    def continued_adapter(self) -> ContinuedAdapter | None:
        """The adapter in `model.adapter`; `None` without one."""
        return None if self.adapter is None else ContinuedAdapter.find(self.adapter, self.backbone, self.auto_class)

    def adapter_is_gone(self) -> bool:
        """Whether a trainer trains without the adapter in `model.adapter`, which nobody finds any more.

        That is right if it loads a checkpoint, which Lightning does only after the model is built; otherwise
        `check_adapter_is_loaded` raises before the first batch.
        """
        self._adapter_problem = None  # of an earlier trainer
        if self.is_fitting and not self._adapter_is_checked:
            try:
                _ = self.continued_adapter
            except CheckpointError as error:
                self._adapter_problem = error
        return self._adapter_problem is not None

    def check_adapter(self) -> None:
        """Refuses to continue an adapter of another base model, of other labels or other settings, at the first call.

        Raises:
            LoraLightningError: If the adapter is not there, or does not fit.
        """
        if self._adapter_is_checked or self.continued_adapter is None:
            return
        self.continued_adapter.settings(to_plain_values(self.lora))
        self.continued_adapter.check_base(self.base_identity, allowed=self.allows_other_base)
        self.continued_adapter.check_quantization(self.quantization)
        self.continued_adapter.check_tokenizer()
        self.weights_to_continue()
        self._adapter_is_checked = True

    def weights_to_continue(self) -> Mapping[str, Tensor]:
        """The weights of the adapter in `model.adapter`, as this task's model takes them."""
        return cast("ContinuedAdapter", self.continued_adapter).weights

    def load_adapter(self, network: PeftModel, lacked: Collection[str]) -> None:
        """Loads the adapter in `model.adapter`, unless a checkpoint is loaded instead; for `build_network`.

        Args:
            network: With adapters that have just been attached; changed in place.
            lacked: Modules that the backbone's checkpoint lacked.

        Raises:
            LoraLightningError: If the adapter does not belong on this model, or its weights do not fit.
        """
        if self.adapter is None or not self.starts_from_adapter or self._adapter_problem is not None:
            return
        self._adapter_is_loaded = True
        if not self.loads_values or next(network.parameters()).is_meta:  # a plan needs no values
            return
        self.check_adapter()
        in_full = cast("LoraConfig", network.peft_config[ADAPTER]).modules_to_save or []
        own = [name for name in in_full if name not in lacked]
        load_adapter_state(network, self.weights_to_continue(), self.adapter, own)
        self.__dict__.pop("continued_adapter", None)  # its weights

    def check_adapter_is_loaded(self) -> None:
        """Refuses to train or evaluate a model that lacks the adapter in `model.adapter`.

        Raises:
            CheckpointError: If it is gone, and no checkpoint was loaded in its place.
            ConfigurationError: If `build_network` did not load it, or if a trainer evaluates without a checkpoint.
        """
        if self._adapter_problem is not None:
            self.network, self.resumes = None, False  # its adapters are new; a later trainer starts over
            raise self._adapter_problem
        if self.adapter is None or self.resumes or self._adapter_is_loaded:
            return
        if self.starts_from_adapter:
            msg = (
                f"model.adapter is {self.adapter!r}, but build_network of {type(self).__name__} does not load it; call "
                "self.load_adapter(network, lacked) there after the adapters are attached, or leave model.adapter out."
            )
        else:
            msg = (
                f"model.adapter is {self.adapter!r}, which is loaded for a training alone, and this trainer evaluates "
                "without a checkpoint; give it a ckpt_path, or call configure_model() of the task first."
            )
        raise ConfigurationError(msg)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As in the base; a checkpoint takes the place of the adapter in `model.adapter`.

        Args:
            state_dict: As in the base.
            strict: As in the base.
            assign: As in the base.

        Returns:
            As in the base.
        """
        found = super().load_state_dict(state_dict, strict, assign)
        self._adapter_problem = None
        return found

    def on_train_start(self) -> None:
        """Refuses to train without the adapter in `model.adapter`; Lightning has loaded a checkpoint by now."""
        self.check_adapter_is_loaded()

    def on_validation_start(self) -> None:
        """Refuses to evaluate without the adapter in `model.adapter`; Lightning has loaded a checkpoint by now."""
        self.check_adapter_is_loaded()

    def on_test_start(self) -> None:
        """As `on_validation_start`."""
        self.check_adapter_is_loaded()

    def on_predict_start(self) -> None:
        """As `on_validation_start`."""
        self.check_adapter_is_loaded()
