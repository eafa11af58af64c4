"""Writes, loads and measures every merge of an adapter; keeps the one that was asked for if it passes."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import transformers
from torch import Tensor, nn

from lora_lightning.analysis.merge_verdict import default_tolerance
from lora_lightning.artefacts.measuring import measure_merge
from lora_lightning.artefacts.merge_gate import (
    ROUNDED_TOLERANCE,
    find_fresh_process_failure,
    find_merge_failure,
    find_no_op,
    recommend_target,
    rounds_nothing,
)
from lora_lightning.artefacts.merged_card import base_model_name, merged_card
from lora_lightning.artefacts.opened import OpenedAdapter
from lora_lightning.artefacts.output_folder import new_folder, scratch_folder
from lora_lightning.artefacts.plain_model import build_plain_model, load_merged, quantization_of, write_model
from lora_lightning.artefacts.reload_check import run_in_fresh_process
from lora_lightning.artefacts.results import DtypeName, FreshProcessCheck, MergeMeasurement, MergeResult
from lora_lightning.backbones import load_original_weights
from lora_lightning.errors import BackboneError, ConfigurationError, VerificationError
from lora_lightning.lora.merged_state import quantized_modules
from lora_lightning.lora.merging import MergeTarget
from lora_lightning.lora.quantized import computing_in_float32

EFFECT = "The adapter's effect on the logits was judged instead."
Candidate = tuple[MergeTarget, DtypeName]


class MergeJob:
    """Writes, loads and measures every candidate; keeps the one that was asked for.

    Args:
        opened: The adapter.
        output: The folder to write.
        target: As in `merge`.
        dtype: As in `merge`.
        base_model_id: As in `merge`.
        report: Is called with a line about each step.
        overwrite: As in `merge`.

    Raises:
        ConfigurationError: If the target needs a quantized base.
    """

    def __init__(
        self,
        opened: OpenedAdapter,
        output: Path,
        target: MergeTarget | None,
        dtype: DtypeName,
        base_model_id: str | None,
        report: Callable[[str], None],
        *,
        overwrite: bool = False,
    ) -> None:
        self.opened, self.output, self.report, self.overwrite = opened, output, report, overwrite
        named = opened.named_base
        self.base_model = base_model_name(opened.backbone, base_model_id or (named.name if named else None))
        self.notes = list(opened.notes)
        self.auto_class = getattr(transformers, opened.auto_class)
        self.quantized = list(quantized_modules(opened.model))
        self.chosen: Candidate = (self._choose_target(target), dtype)
        with computing_in_float32(opened.network):
            self.tolerance = default_tolerance(opened.network)
        self.measurements: dict[Candidate, MergeMeasurement] = {}
        self._originals: dict[str, Tensor] | None = None

    def _choose_target(self, target: MergeTarget | None) -> MergeTarget:
        if self.quantized:
            return target or "dequantized"
        if target in {None, "original"}:
            return "base"
        msg = f"--target is {target}, but the base is not quantized; leave it out."
        raise ConfigurationError(msg)

    def run(self) -> MergeResult:
        """Measures all candidates and writes the chosen one.

        Returns:
            What was measured.

        Raises:
            VerificationError: If a check fails; nothing is written.
        """
        draft_folder = new_folder(self.output, overwrite=self.overwrite)
        with draft_folder as draft, computing_in_float32(self.opened.network):
            for candidate in self._candidates():
                self._write_and_measure(candidate, draft if candidate == self.chosen else None)
            self._check_measurements()
            checked = self._check_in_fresh_process(draft)
            self._write_card(draft)
        if checked.max_difference_after_saving_again is None:
            self.notes.append("this transformers version cannot save a model that it loaded in 4 bits once more.")
        recovery = self.measurements[self.chosen].recovery
        if recovery is None:
            self.notes.append(
                f"the adapter's gain is not judged without data; give it with --config or --data. {EFFECT}"
            )
        elif not recovery.has_gain:
            self.notes.append(f"{recovery}. {EFFECT}")
        return MergeResult(
            source=self.opened.source,
            output=self.output,
            base_model=self.base_model,
            target=self.chosen[0],
            dtype=self.chosen[1],
            recommended=recommend_target(list(self.measurements.values())),
            measured_on=self.opened.measured_on,
            monitor=self.opened.monitor,
            measurements=tuple(self.measurements.values()),
            fresh_process=checked,
            notes=tuple(self.notes),
        )

    def _candidates(self) -> list[Candidate]:
        """All targets in float32, first the one that must be exact; then the chosen one in 16 bits."""
        targets: list[MergeTarget] = ["base"]
        if self.quantized:
            targets = ["dequantized", *(["original"] if self._load_originals() else []), "requantized"]  # type: ignore[list-item]
        in_16_bits: DtypeName = "bfloat16" if self.chosen[1] == "float32" else self.chosen[1]
        return [*((target, "float32") for target in targets), (self.chosen[0], in_16_bits)]

    def _load_originals(self) -> bool:
        try:
            self._originals = load_original_weights(self.opened.model, self.opened.backbone, self.quantized)
        except BackboneError as error:
            if self.chosen[0] == "original":
                raise
            self.notes.append(f"the target original was not measured: {error}")
        return self._originals is not None

    def _write_and_measure(self, candidate: Candidate, draft: Path | None) -> None:
        target, dtype = candidate
        self.report(f"merging into the {target} weights in {dtype}, then loading the folder and comparing")
        with ExitStack() as stack:
            folder = draft or stack.enter_context(scratch_folder(self.output)) / "merged"
            self._write(target, dtype, folder)
            merged = load_merged(folder, self.auto_class, self.opened.observer.device)
            size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
            try:
                measured = measure_merge(self.opened.observer, merged, target, dtype, size)
            except RuntimeError as error:
                self._explain_16_bits(candidate, error)
                return
        if clause := find_no_op(measured.adapter_effect):
            msg = f"{self.opened.source}: {clause}."
            raise VerificationError(msg)
        self.measurements[candidate] = replace(measured, failure=find_merge_failure(measured, self.tolerance))

    def _explain_16_bits(self, candidate: Candidate, error: RuntimeError) -> None:
        """Some models of transformers mix dtypes in 16 bits, such as DeBERTa's first version (5.24)."""
        target, dtype = candidate
        if dtype == "float32":
            raise error
        problem = f"transformers cannot run this model in {dtype} ({' '.join(str(error).split())[:150]})"
        if candidate == self.chosen:
            msg = f"{problem}; nothing was written; --dtype float32 does not need it."
            raise VerificationError(msg) from error
        self.notes.append(f"the {target} weights in {dtype} were not measured: {problem}.")

    def _write(self, target: MergeTarget, dtype: DtypeName, folder: Path) -> None:
        opened = self.opened
        model = build_plain_model(opened.model, dtype, self._originals if target == "original" else None)
        write_model(model, opened.tokenizer, folder, opened.files)
        if target == "requantized":
            quantized = load_merged(folder, self.auto_class, opened.observer.device, quantization_of(opened.model))
            if model.can_generate():
                quantized.generation_config = model.generation_config
            write_model(quantized, opened.tokenizer, folder, opened.files)

    def _check_measurements(self) -> None:
        """The chosen folder must pass, and so must a merge of the same adapter that rounds nothing."""
        found = list(self.measurements.values())
        passed = [each for each in found if each.failure is None]
        for each in found:
            is_chosen, is_exact = each is self.measurements[self.chosen], rounds_nothing(each.target, each.dtype)
            if each.failure is None or not (is_chosen or is_exact):
                continue
            advice = "keep the adapter beside its base, and look for what is wrong"
            if passed and not is_exact:  # which would have to pass whatever is chosen
                target = f"--target {passed[0].target} " if self.quantized else ""
                advice = f"{target}--dtype {passed[0].dtype} passes"
            msg = (
                f"merging into the {each.target} weights in {each.dtype} changes the model: {each.failure}; nothing "
                f"was written; {advice}."
            )
            raise VerificationError(msg)

    def _check_in_fresh_process(self, folder: Path) -> FreshProcessCheck:
        self.report("loading the folder in a fresh process with transformers alone, saving and loading it once more")
        opened, is_exact = self.opened, rounds_nothing(*self.chosen)
        reference: nn.Module = opened.network
        if not is_exact:
            reference = load_merged(folder, self.auto_class, opened.observer.device)
        found = run_in_fresh_process(folder, opened.auto_class, opened.observer, reference, opened.tokenizer)
        if clause := find_fresh_process_failure(found, self.tolerance if is_exact else ROUNDED_TOLERANCE):
            model = "the adapter model" if is_exact else "what was merged in this process"
            msg = f"the merged folder is not {model}: {clause}; nothing was written."
            raise VerificationError(msg)
        return found if is_exact else replace(found, reference="merged")

    def _write_card(self, folder: Path) -> None:
        measured = self.measurements[self.chosen]
        card = merged_card(self.opened, self.opened.model, measured, self.base_model, self.output.name)
        (folder / "README.md").write_text(card, encoding="utf-8")
