"""Tries a model family: trains a tiny random model with all monitors, tests it, and opens its adapter in plain PEFT."""

import csv
import json
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, BitsAndBytesConfig, PreTrainedModel

from lora_lightning import RunRecord, evaluate, train
from lora_lightning.backbones.loading import renamed_weights
from lora_lightning.errors import LoraLightningError
from lora_lightning.lora.target_parameters import parameters_to_suggest
from lora_lightning.tasks import CausalLanguageModelingTask, QuestionAnsweringTask, SequenceClassificationTask
from lora_lightning.tasks.base import AdaptationTask
from tests.family_trials.tiny_architectures import save_tiny_model, tiny_config

MONITORS = Path(__file__).parents[2] / "configs/callbacks/all_monitors.yaml"
PASSED, REFUSED, NOT_APPLICABLE, FAILED = "passed", "refused: ", "not applicable", "failed: "
TOLERANCE = 1e-5  # of max(1, largest |logit|), in float32
STEPS = 3
TASKS: dict[str, tuple[type[AdaptationTask], str]] = {
    "classification": (SequenceClassificationTask, "AutoModelForSequenceClassification"),
    "question answering": (QuestionAnsweringTask, "AutoModelForQuestionAnswering"),
    "causal LM": (CausalLanguageModelingTask, "AutoModelForCausalLM"),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "all-linear": {},
    "attention-qv": {"model.lora.target_modules": "attention-qv"},
    "attention": {"model.lora.target_modules": "attention"},
    "attention-mlp": {"model.lora.target_modules": "attention-mlp"},
    "NF4": {"model.quantization.bits": 4},
}
PACKED = {"causal LM": {"packed": {"data.packing": True}}}  # settings of one task alone
EXPERTS = "experts"  # of a mixture, by `target_parameters`; a setting of causal language models alone
TESTED_AGAIN = ("all-linear", "NF4", "packed", EXPERTS)  # by `test` in a run of its own; training tests every cell once


def try_family(model_type: str, folder: Path) -> dict[str, dict[str, str]]:
    """Tries every task with every setting.

    Args:
        model_type: transformers' name of the architecture.
        folder: For the model, data and runs; removed when all cells are tried.

    Returns:
        By task and setting: `passed`, `refused: ...`, `not applicable`, or `failed: ...`, which is a fault.
    """
    save_tiny_model(model_type, folder / "model")
    save_data(folder / "data")
    try:
        return {task: _try_task(model_type, folder, task) for task in TASKS}
    finally:
        shutil.rmtree(folder)


def _try_task(model_type: str, folder: Path, task: str) -> dict[str, str]:
    settings = {**SETTINGS, **PACKED.get(task, {})}
    if not exists(model_type, task):
        return dict.fromkeys(settings, NOT_APPLICABLE)
    if task == "causal LM" and (names := expert_parameters(model_type)):
        settings[EXPERTS] = {"model.lora.target_parameters": names, "model.lora.lora_dropout": 0.0}
    return {setting: try_cell(folder, task, setting, options) for setting, options in settings.items()}


def expert_parameters(model_type: str) -> list[str]:
    """What `target_parameters` names to adapt a family's experts.

    Args:
        model_type: transformers' name of the architecture, which has a causal language model.

    Returns:
        Ends of parameters' names; empty for a model without experts.
    """
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(tiny_config(model_type))
    return parameters_to_suggest(model, ["lm_head"])


def exists(model_type: str, task: str) -> bool:
    """Whether transformers has an auto class of this task for the architecture.

    Args:
        model_type: transformers' name of the architecture.
        task: Of `TASKS`.

    Returns:
        Whether it has.
    """
    mapping = getattr(transformers, TASKS[task][1])._model_mapping
    return type(AutoConfig.for_model(model_type)) in mapping


def try_cell(folder: Path, task: str, setting: str, options: dict[str, Any]) -> str:
    """Trains, tests and exports with one setting.

    Args:
        folder: With `model` and `data`.
        task: Of `TASKS`.
        setting: Its name.
        options: By dotted name.

    Returns:
        A value of the table.
    """
    try:
        with _quiet():
            record = train([cell_config(folder, task), MONITORS], options)
            if setting in TESTED_AGAIN:
                evaluate(record)
            difference = export_difference(record, task)
    except LoraLightningError as error:
        return f"{REFUSED}{_portable(str(error), folder)}"
    except Exception as error:  # noqa: BLE001  # whatever is raised is a fault, and the table says which
        return f"{FAILED}{type(error).__name__}: {_portable(str(error), folder)[:300]}"
    return PASSED if difference <= TOLERANCE else f"{FAILED}the exported adapter's logits differ by {difference:.1e}"


def cell_config(folder: Path, task: str) -> dict[str, Any]:
    """The run's settings.

    Args:
        folder: With `model` and `data`.
        task: Of `TASKS`.

    Returns:
        A config for `lora_lightning.train`.
    """
    data = {name: str(folder / "data" / name) for name in ("texts.csv", "questions", "instructions.jsonl")}
    modules: dict[str, tuple[str, dict[str, Any]]] = {
        "classification": ("TextClassificationDataModule", {"train_file": data["texts.csv"], "max_length": 24}),
        "question answering": ("SquadV2DataModule", {"data_dir": data["questions"], "max_length": 32, "doc_stride": 8}),
        "causal LM": (
            "InstructionDataModule",
            {"train_file": data["instructions.jsonl"], "context_length": 64, "packing": False},
        ),
    }
    name, options = modules[task]
    if task != "question answering":
        first = next(iter(data.values())) if task == "classification" else data["instructions.jsonl"]
        options |= {"validation_file": first, "test_file": first}
    return {
        "seed_everything": 0,
        "model": {
            "class_path": TASKS[task][0].__name__,
            "init_args": {
                "backbone": str(folder / "model"),
                "lora": {"r": 2, "target_modules": "all-linear"},
                "optimization": {"learning_rate": 0.02},
            },
        },
        "data": {
            "class_path": name,
            "init_args": {**options, "batch_size": 4, "eval_batch_size": 8, "cache_dir": str(folder / "cache")},
        },
        "trainer": {
            "max_steps": STEPS,
            "accelerator": "cpu",
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": [],
            "logger": {
                "class_path": "CSVLogger",
                "init_args": {"save_dir": str(folder / "runs"), "name": task.replace(" ", "-")},
            },
        },
    }


def save_data(folder: Path) -> None:
    """Saves twelve rows for each task, of words that the tokenizer of a tiny model knows.

    Args:
        folder: Where to; created.
    """
    texts = [" ".join(f"w{(5 * row + place) % 9}" for place in range(2 + row % 5)) for row in range(12)]
    (folder / "questions").mkdir(parents=True)
    with (folder / "texts.csv").open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([("text", "label"), *((text, "ab"[row % 2]) for row, text in enumerate(texts))])
    lines = [json.dumps({"instruction": text, "output": text[::-1][:1] + " w1 w2"}) for text in texts]
    (folder / "instructions.jsonl").write_text("\n".join(lines) + "\n")
    paragraphs = [_paragraph(row, text) for row, text in enumerate(texts)]
    for name in ("train-v2.0.json", "dev-v2.0.json"):
        content = {"version": "v2.0", "data": [{"title": "a", "paragraphs": paragraphs}]}
        (folder / "questions" / name).write_text(json.dumps(content))


def _paragraph(row: int, text: str) -> dict[str, Any]:
    answers = [] if row % 3 == 0 else [{"text": text.split(maxsplit=1)[0], "answer_start": 0}]
    question = {"id": f"q{row}", "question": f"w{row % 9}", "answers": answers, "is_impossible": not answers}
    return {"context": text, "qas": [question]}


@torch.no_grad()
def export_difference(record: RunRecord, task: str) -> float:
    """Compares the task with its exported folder in plain PEFT, on a freshly loaded base.

    Args:
        record: A finished run.
        task: Of `TASKS`.

    Returns:
        The largest difference of logits, relative to max(1, largest |logit|).
    """
    own = TASKS[task][0].load_from_checkpoint(record.checkpoint, map_location="cpu", weights_only=True)
    own.configure_model()
    own.eval()
    tokens = torch.tensor([[1, 5, 6, 2, 2, 7, 8, 2], [1, 9, 6, 2, 2, 10, 11, 2]])  # pairs of texts
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    expected = _logits(own.built_network, inputs)
    network = _opened(record, own, TASKS[task][1])
    found = _logits(network.eval(), inputs)
    return float((found - expected).abs().max() / max(1.0, float(expected.abs().max())))


def _opened(record: RunRecord, own: AdaptationTask, auto_class: str) -> nn.Module:
    assert record.adapter is not None
    folder = str(record.adapter)
    options: dict[str, Any] = {}
    if (file := Path(folder) / "quantization_config.json").is_file():
        options["quantization_config"] = BitsAndBytesConfig.from_dict(json.loads(file.read_text()))
    if auto_class == "AutoModelForQuestionAnswering":
        options["key_mapping"] = renamed_weights(own.transformers_model)
    config = AutoConfig.from_pretrained(folder, subfolder="config")
    base: PreTrainedModel = getattr(transformers, auto_class).from_pretrained(
        own.backbone, config=config, dtype=torch.float32, **options
    )
    return peft.PeftModel.from_pretrained(base, folder)


def _logits(network: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    output = network(**inputs)
    found = [output[name] for name in ("logits", "start_logits", "end_logits") if name in output]
    return torch.stack(found).float()


@contextmanager
def _quiet() -> Iterator[None]:
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _portable(sentence: str, folder: Path) -> str:
    """A sentence in one line, the same on every machine."""
    return " ".join(sentence.replace(f"{folder}/", "").split())
