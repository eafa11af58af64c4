"""Starts a fresh process that loads the merged folder with transformers alone, and compares what it computes."""

import errno
import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lora_lightning.artefacts import fresh_process
from lora_lightning.artefacts.observers import Observer, raw_inputs, raw_logits, rows_of_output
from lora_lightning.artefacts.output_folder import scratch_folder
from lora_lightning.artefacts.results import FreshProcessCheck
from lora_lightning.backbones.model_card import CLASSIFIER
from lora_lightning.errors import ConfigurationError, VerificationError
from lora_lightning.runs.signals import KILLED
from lora_lightning.tasks.held_out_batches import Batch

BATCHES = 4  # spread over all
PROBE = "The quick brown fox, 12.5 % of <s>them</s>: w10 w11"  # to tokenize


def run_in_fresh_process(
    folder: Path,
    auto_class: str,
    observer: Observer,
    reference: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase | None,
) -> FreshProcessCheck:
    """Loads a folder in a new process without PEFT and without this package, saves it there and loads it once more.

    Args:
        folder: The merged folder.
        auto_class: Name of transformers' class that loads it.
        observer: Has the batches.
        reference: The model in this process that the other one must agree with.
        tokenizer: That of the adapter model.

    Returns:
        The differences, not judged yet.

    Raises:
        VerificationError: If the folder does not load, lacks weights, names labels otherwise or tokenizes otherwise.
        ConfigurationError: If the process was killed, as it is if memory runs out.
        OSError: If the disk is full.
    """
    batches = some_batches(observer.batches)
    with scratch_folder(folder) as scratch:
        request = write_request(scratch, folder, auto_class, batches, observer.device, tokenizer)
        answer = _run(scratch, request)
        outputs = load_file(request["outputs"])
    if answer["missing"]:
        msg = f"the merged folder has no weights for {', '.join(answer['missing'][:3])}, which would be random."
        raise VerificationError(msg)
    if answer["modules"]:
        msg = f"the merged folder loads {' and '.join(answer['modules'])}, but transformers alone should do."
        raise VerificationError(msg)
    names = {str(number): name for number, name in (observer.network.config.id2label or {}).items()}
    if auto_class == CLASSIFIER and answer["labels"] != names:
        msg = f"the merged folder has the labels {_shown(answer['labels'])}, but the adapter has {_shown(names)}."
        raise VerificationError(msg)
    if tokenizer is not None and answer["tokens"] != tokenizer(PROBE)["input_ids"]:
        msg = "the tokenizer in the merged folder gives other token ids than the adapter's."
        raise VerificationError(msg)
    places = ("first", "again") if answer["saved_again"] else ("first", "first")
    with observer.isolated():
        expected = [raw_logits(reference, batch, observer.device).float().cpu() for batch in batches]
    found = compare_outputs(expected, batches, outputs, places)
    return found if answer["saved_again"] else replace(found, max_difference_after_saving_again=None)


def _shown(names: dict[str, str]) -> str:
    return ", ".join(names.values())[:200] or "(none)"


def some_batches(batches: Sequence[Batch]) -> list[Batch]:
    """At most four batches, evenly spread."""
    places = torch.linspace(0, len(batches) - 1, min(BATCHES, len(batches)), dtype=torch.float64).round().long()
    return [batches[place] for place in places.tolist()]


def write_request(
    scratch: Path,
    folder: Path,
    auto_class: str,
    batches: Sequence[Batch],
    device: torch.device,
    tokenizer: PreTrainedTokenizerBase | None,
) -> dict[str, Any]:
    """Writes what a fresh process needs to know.

    Args:
        scratch: A folder for its files.
        folder: The merged folder.
        auto_class: As in `run_in_fresh_process`.
        batches: To run.
        device: Where.
        tokenizer: That of the adapter model.

    Returns:
        The content of `request.json`.
    """
    tensors = {
        f"{number}.{name}": tensor.contiguous()
        for number, batch in enumerate(batches)
        for name, tensor in raw_inputs(batch).items()
    }
    save_file(tensors, str(scratch / "inputs.safetensors"))
    request = {
        "folder": str(folder.absolute()),
        "again": str((scratch / "again").absolute()),
        "auto_class": auto_class,
        "device": str(device),
        "threads": torch.get_num_threads(),
        "batches": len(batches),
        "inputs": str((scratch / "inputs.safetensors").absolute()),
        "outputs": str((scratch / "outputs.safetensors").absolute()),
        "result": str((scratch / "result.json").absolute()),
        "text": None if tokenizer is None else PROBE,
    }
    (scratch / "request.json").write_text(json.dumps(request), encoding="utf-8")
    return request


def _run(scratch: Path, request: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, "-P", fresh_process.__file__, str((scratch / "request.json").absolute())]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(  # noqa: S603  # this interpreter and our own file
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        cwd=scratch,
    )
    if done.returncode == 0:
        answer: dict[str, Any] = json.loads(Path(request["result"]).read_text(encoding="utf-8"))
        return answer
    if done.returncode == KILLED:
        msg = (
            "the fresh process that loads the merged folder was killed, probably because memory ran out; merge on a "
            "machine with more memory, or end other programs."
        )
        raise ConfigurationError(msg)
    lines = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit status {done.returncode}"]
    if os.strerror(errno.ENOSPC) in lines[-1]:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), request["folder"])
    msg = f"transformers alone cannot load the merged folder in a fresh process: {lines[-1][:300]}"
    raise VerificationError(msg)


def compare_outputs(
    expected: Sequence[Tensor], batches: Sequence[Batch], outputs: dict[str, Tensor], places: tuple[str, str]
) -> FreshProcessCheck:
    """Compares what a fresh process computed.

    Args:
        expected: The logits of each batch, as `raw_logits` has them.
        batches: The batches.
        outputs: That the process wrote.
        places: Whose logits are compared with the expected ones, and whose with these.

    Returns:
        The largest differences.
    """
    differences, again, largest = [0.0], [0.0], [0.0]
    for number, (batch, own) in enumerate(zip(batches, expected, strict=True)):
        first, second = (_rows(outputs, place, number, batch) for place in places)
        real = own != -math.inf
        differences.append(_largest(first - own, real))
        again.append(_largest(second - first, real))
        largest.append(_largest(own, real))
    return FreshProcessCheck(max(differences), max(again), max(largest))


def _rows(outputs: dict[str, Tensor], place: str, number: int, batch: Batch) -> Tensor:
    prefix = f"{place}.{number}."
    own = {name.removeprefix(prefix): tensor for name, tensor in outputs.items() if name.startswith(prefix)}
    return rows_of_output(own, batch)


def _largest(values: Tensor, real: Tensor) -> float:
    found = values[real].abs()
    return math.inf if found.isnan().any() else float(found.max()) if len(found) else 0.0
