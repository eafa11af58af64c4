"""What `--help` of `fit`, `validate`, `test` and `predict` prints, from the schema file: nothing heavy is imported."""

import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from textwrap import wrap

from lora_lightning.cli.first_checks import OF_A_RUN, quickstart_command
from lora_lightning.configuration.schema_file import (
    OF_CLASSES,
    Option,
    all_options,
    class_names,
    class_options,
    class_summary,
)

HELP = ("--help", "-h")
ALL = "--help-all"
OF_A_CLASS = re.compile(r"--(?P<group>model|data|trainer\.callbacks)\.help(?:=(?P<name>\w+))?")
INDENT = 36  # of descriptions
WIDEST, NARROWEST = 120, 60
USES = {
    "fit": "Train from YAML configs, then test the best checkpoint.",
    "validate": "Evaluate a checkpoint on the validation split.",
    "test": "Evaluate a checkpoint on the test split.",
    "predict": "Classify, answer or continue the texts in a file with a checkpoint.",
}
CLASSES = {
    "model": {
        "SequenceClassificationTask": "labels of texts or pairs of texts, or a number",
        "QuestionAnsweringTask": "the span of a context that answers a question, or none",
        "CausalLanguageModelingTask": "next tokens of plain text; responses to instructions and chats",
        "PlantedRankTask": "updates of a known rank, which check the monitors",
    },
    "data": {
        "TextClassificationDataModule": "your texts with labels or numbers",
        "InstructionDataModule": "your instructions and chats",
        "PlainTextDataModule": "your plain text, or WikiText-2",
        "SquadV2DataModule": "SQuAD, or your questions in its format",
        "GlueDataModule": "a task of GLUE",
        "Clinc150DataModule": "CLINC150: 150 intents, and queries out of scope",
        "SyntheticIntentsDataModule": "the quickstart's generated intents",
        "PlantedRankDataModule": "for PlantedRankTask",
    },
}
# The options in the short help, by the title of their part, with what each takes and is.
MODEL = {
    "model.backbone": "ID, a folder, or package://PACKAGE/FOLDER",
    "model.lora.r": "rank; change lora_alpha with it, since updates are scaled by lora_alpha / r",
    "model.lora.lora_alpha": "numerator of that scaling",
    "model.lora.target_modules": "all-linear, attention-qv, attention, attention-mlp, or names",
    "model.lora": "all of its options together; null for full fine-tuning",
    "model.quantization": "{bits: 4} for QLoRA; null does not quantize the base",
    "model.optimization.learning_rate": "several times that of full fine-tuning",
    "model.gradient_checkpointing": "much less memory, a third more time",
    "model.torch_compile": "faster steps in bfloat16 after a minute of compiling",
    "model.adapter": "folder or hub id of a PEFT adapter to train further",
}
DATA = {
    "data.train_file": "your own texts, instructions or questions",
    "data.validation_file": "without it, a share of the training rows is held out",
    "data.data_dir": "folder of a data set's release",
    "data.dataset_name": "a data set of the hub in place of files",
    "data.batch_size": "rows per step and process",
}
MACHINE = {
    "trainer.devices": "auto, or a number of GPUs or processes",
    "trainer.precision": "32-true, bf16-mixed or 16-mixed",
}
TRAINER = {
    "trainer.max_epochs": "epochs to train",
    "trainer.max_steps": "optimizer steps to train, if they are fewer",
    **MACHINE,
    "trainer.accumulate_grad_batches": "batches per optimizer step",
    "trainer.gradient_clip_val": "largest norm of the gradient",
    "checkpoint.monitor": "the validation metric that selects the best checkpoint",
    "checkpoint.mode": "max if a higher value is better",
    "early_stopping.patience": "validations without improvement before training stops",
}
RUN = {
    "resume": "auto: resume the newest run with the same settings, or start one",
    "seed_everything": "seed of initial weights, dropout and batches",
    "test_after_fit": "test the best checkpoint after training",
}
CHECKPOINT = {"ckpt_path": "the checkpoint, such as RUN/checkpoints/best.ckpt"}
EVALUATION = {"checkpoint": CHECKPOINT, "data": DATA, "trainer": MACHINE}
SHORT = {
    "fit": {"model": MODEL, "data": DATA, "trainer": TRAINER, "run": RUN},
    "validate": EVALUATION,
    "test": EVALUATION,
    "predict": {
        "checkpoint": CHECKPOINT,
        "data": {
            "data.predict_file": "a text per line, or the format of the training file; - for standard input",
            "data.eval_batch_size": "rows per step",
        },
        "predictions": {"predictions.file": "the file to write; .csv, .jsonl or .json"},
        "trainer": MACHINE,
    },
}
CONFIG = Option("config", "FILE", "a YAML file; repeatable, later ones override earlier ones", "")
MORE = """\
more:
  --help-all                        every option, also those of all models and data modules
  --model.help CLASS                the options of a class; --data.help and --trainer.callbacks.help likewise
  --print_config                    print the complete config, and run nothing
  --debug                           also print the traceback of an error

An option on the command line overrides the same one in a config, where those of model and data are below `init_args`.
`lora-lightning configs` lists the YAML files of this package, and --copy NAME copies one to edit it.
"""


def help_text(command: str, words: Sequence[str]) -> str | None:
    """Returns the help that a command line asks for.

    Args:
        command: `fit`, `validate`, `test` or `predict`.
        words: Its options.

    Returns:
        The text; `None` if no help is asked for, or that of a class which is not of this package.
    """
    width = min(WIDEST, max(NARROWEST, shutil.get_terminal_size((100, 24)).columns))
    if ALL in words:
        return "\n".join([*_head(command), *_everything(width)])
    for place, word in enumerate(words):
        if found := OF_A_CLASS.fullmatch(word):
            name = found["name"] or "".join(words[place + 1 : place + 2])
            if name in class_names(found["group"]):
                return "\n".join(_class_lines(found["group"], name, width))
    return "\n".join([*_head(command), *_short(command, width)]) if {*HELP} & {*words} else None


def _head(command: str) -> Iterator[str]:
    yield f"usage: lora-lightning {command} --config FILE [--config FILE ...] [--OPTION VALUE ...]"
    yield ""
    yield USES[command]
    example = quickstart_command() if command == "fit" else f"`lora-lightning {command} {OF_A_RUN}`"
    yield f"For example: {example}"
    yield ""


def _short(command: str, width: int) -> Iterator[str]:
    known = options_by_name()
    yield from _lines(CONFIG, width)
    for title, texts in SHORT[command].items():
        yield from ("", f"{title}:")
        if title in OF_CLASSES and command == "fit":
            yield f"  --{title} CLASS, one of"
            for name, text in CLASSES[title].items():
                yield from _columns(f"    {name}", text, width)
        for name, text in texts.items():
            option = known[name]
            yield from _lines(replace(option, description=text, values=_short_values(option)), width)
    yield from ("", MORE)


def options_by_name() -> dict[str, Option]:
    """Returns one option for each name, with its default if all classes that have it agree."""
    known: dict[str, Option] = {}
    for option in all_options():
        first = known.setdefault(option.name, option)
        if option.default != first.default:
            known[option.name] = replace(first, default="depends on the class")
    return known


def _short_values(option: Option) -> str:
    """One word for what an option takes, or its choices if they are all."""
    forms = option.values.split("|")
    return forms[0] if len(forms) == 1 else next((form for form in forms if not form.startswith("{")), "TEXT")


def _everything(width: int) -> Iterator[str]:
    yield from _lines(CONFIG, width)
    yield from ("", "model:", *_model_lines(width))
    for name in class_names("data"):
        yield from ("", *_class_lines("data", name, width))
    others = [option for option in all_options() if not option.owner]
    for title in dict.fromkeys(_group_of(option) for option in others):
        yield from ("", f"{title}:")
        for option in others:
            if _group_of(option) == title and option.name != title:
                yield from _lines(option, width)
    for name in class_names("trainer.callbacks"):
        yield from ("", *_class_lines("trainer.callbacks", name, width))
    yield from ("", MORE)


def _model_lines(width: int) -> Iterator[str]:
    """The options of all models, each once, with the models that have it if some have not."""
    models = class_names("model")
    owners: dict[str, list[Option]] = {}
    for name in models:
        for option in class_options("model", name):
            owners.setdefault(option.name, []).append(option)
    for name in models:
        yield from _columns(f"  {name}", class_summary(name), width)
    for found in owners.values():
        only = "" if len(found) == len(models) else f" Of {', '.join(option.owner for option in found)}."
        yield from _lines(replace(found[0], description=found[0].description + only), width)


def _group_of(option: Option) -> str:
    return option.name.partition(".")[0] if "." in option.name else "run"


def _class_lines(group: str, name: str, width: int) -> Iterator[str]:
    yield f"{group} {name}:"
    yield from wrap(class_summary(name), width, initial_indent="  ", subsequent_indent="  ")
    for option in class_options(group, name):
        yield from _lines(option, width)


def _lines(option: Option, width: int) -> Iterable[str]:
    text = option.description.replace("``", "`")
    if option.default:
        text = f"{text.removesuffix('.')} (default: {option.default})"
    return _columns(f"  --{option.name} {option.values}".rstrip(), text, width)


def _columns(left: str, text: str, width: int) -> Iterator[str]:
    """An option beside its description, or above it if it is too long."""
    lines = wrap(text, width - INDENT) or [""]
    if len(left) + 1 > INDENT:
        yield left
    else:
        yield f"{left:<{INDENT}}{lines.pop(0)}".rstrip()
    yield from (" " * INDENT + line for line in lines)
