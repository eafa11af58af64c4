"""Well-formed input whose meaning is odd, with an oracle for each kind: a run that succeeds must have the right result.

The other cases of this package only ask whether a command ends well; these also say what it must have understood.
"""

import csv
import io
import json
import shutil
import unicodedata
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer

from lora_lightning import RunRecord
from lora_lightning.training.commands import prepare_command
from tests.conftest import TinyBackbone
from tests.fuzzing.data_files import CHATS, FORMATS, INSTRUCTIONS, LM, Format, command
from tests.fuzzing.model_files import trained_run
from tests.fuzzing.outcome import Case
from tests.fuzzing.trees import pick

Rows = list[dict[str, Any]]
Cases = Iterator[Case]
TABLE = FORMATS["text classification/.csv, word"]


def _random(name: str, number: int, seed: int) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(name.encode()), number])


def validation_cases(folder: Path, tiny_backbone: TinyBackbone, count: int, seed: int = 0) -> Cases:
    """Options about validation and length; a finished run has a best checkpoint exactly if it has validated.

    Args:
        folder: For the files.
        tiny_backbone: Tiny weights of an architecture.
        count: How many cases.
        seed: Of the choices.

    Yields:
        `fit` with such options.
    """
    kind = FORMATS["CLINC150 JSON"]
    options, _ = kind.save(folder)
    choices: dict[str, list[Any]] = {
        "val_check_interval": [0, 0.0, -1, 1, 2, 99, 0.1, 1.0, 1.5, "{seconds: 0}", "{hours: 1}", "00:00:00:00", "-1"],
        "check_val_every_n_epoch": ["null", 0, -1, 1, 2, 7],
        "limit_val_batches": [0, 0.0, 1, 2, 1.0, -1],
        "max_epochs": [0, 1, 2, -1],
        "max_time": ["00:00:00:00", "{minutes: 1}", "{seconds: -1}"],
        "num_sanity_val_steps": [0, 1, -1, -2],
    }
    for number in range(count):
        random = _random("validation", number, seed)
        names = random.choice(sorted(choices), size=int(random.integers(1, 4)), replace=False)
        more = [f"--trainer.{name}={pick(choices[name], random)}" for name in names]
        logs = f"logs{number}"
        words = (*command(kind, tiny_backbone, folder), *options, *more, f"--trainer.logger.save_dir={logs}")
        yield Case("validation options", " ".join(more), words, folder, _best_if_validated(folder / logs))


def _best_if_validated(logs: Path) -> Callable[[str], str]:
    def check(_: str) -> str:
        (config,) = logs.rglob("config.yaml")
        run = RunRecord.load(config.parent)
        if (run.best_checkpoint is None) != ("val" not in run.metrics):
            return f"best checkpoint {run.best_checkpoint}, metrics {run.metrics}"
        return "" if run.steps and run.adapter is not None else f"{run.steps} steps, exported to {run.adapter}"

    return check


def chat_cases(folder: Path, tiny_backbone: TinyBackbone, count: int, seed: int = 0) -> Cases:
    """Chats with further roles, weights and fields; what is learnt is exactly the responses that count.

    Args:
        folder: For the files.
        tiny_backbone: `gpt2`, which gets a chat template that writes every content.
        count: How many cases.
        seed: Of the choices.

    Yields:
        `fit` on such chats.
    """
    kind = Format(INSTRUCTIONS, "chat", lambda _: ([], []))
    base = command(kind, tiny_backbone, folder)
    for number in range(count):
        random = _random("chat", number, seed)
        rows, done = _odd_chats(random)
        here = folder / str(number)
        here.mkdir(parents=True)
        (here / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        words = (*base, "--data.train_file=rows.jsonl", "--data.chat_template=true", *LM)
        yield Case("meaning of chats", done, words, here, _learns_the_responses(words, rows))


def _odd_chats(random: np.random.Generator) -> tuple[Rows, str]:
    rows: Rows = json.loads(json.dumps(CHATS))
    message = pick(["assistant", "user"], random)
    fields: list[tuple[str, Any]] = [("weight", 0), ("weight", 1), ("train", False), ("name", "w7")]
    fields += [("tool_calls", [{"type": "function", "function": {"name": "w8", "arguments": {"w9": 1}}}])]
    fields += [("reasoning_content", "w8 w9"), ("content", ""), ("content", [{"type": "text", "text": "w4 w5"}])]
    field, value = pick(fields, random)
    role = pick(["system", "developer", "tool", "human", "model", "assistant", "narrator"], random)
    share = float(random.random())
    for row in rows:
        if random.random() < share:
            for turn in row["messages"]:
                turn.update({field: value} if turn["role"] == message else {})
    if random.random() < 0.5:
        return rows, f"{field} = {value!r} of {message}"
    place = int(random.integers(3))
    for row in rows:
        row["messages"].insert(min(place, len(row["messages"])), {"role": role, "content": "w6 w4"})
    return rows, f"{field} = {value!r} of {message}; {role} at {place}"


def _learns_the_responses(words: Sequence[str], rows: Rows) -> Callable[[str], str]:
    def check(said: str) -> str:
        expected: Counter[str] = Counter()
        for row in rows:
            empty = any(turn["role"] == "assistant" and not turn["content"] for turn in row["messages"])
            if empty and "were left out" in said:
                continue
            for turn in row["messages"]:
                is_response = turn["role"] in {"assistant", "model", "gpt"}
                if is_response and turn.get("weight", 1) != 0 and turn.get("train", True):
                    content = turn["content"]
                    text = content if isinstance(content, str) else " ".join(part["text"] for part in content)
                    expected.update(text.split())
                unread = {"tool_calls", "reasoning_content"} & turn.keys()
                if missing := [name for name in unread if name not in said]:
                    return f"{missing} of a message neither reached the model nor was named"
        data = prepare_command("fit", [word for word in words[1:] if word != "--trainer.callbacks=null"]).datamodule
        data.prepare_data()
        data.setup("fit")
        learnt: Counter[str] = Counter()
        for split in data.splits.values():
            labels = split.split.tokens["labels"]
            learnt.update(data.tokenizer.convert_ids_to_tokens(labels[labels >= 0].tolist()))
        found = Counter({word: times for word, times in learnt.items() if word.startswith("w")})
        return "" if found == expected else f"learnt {dict(found)}, but the responses have {dict(expected)}"

    return check


LOOK_ALIKES: dict[str, Callable[[str], str]] = {
    "case": str.upper,
    "space": lambda label: f" {label}",
    "no-break space": lambda label: f"{label}\u00a0",
    "zero width": lambda label: f"{label[0]}\u200b{label[1:]}",
    "decomposed": lambda label: unicodedata.normalize("NFD", f"{label}\u00e9"),
    "composed": lambda label: f"{label}\u00e9",
    "missing": lambda _: "N/A",
    "number": lambda _: "1",
    "float": lambda _: "1.0",
    "separator": lambda label: f"{label};no",
}


def label_cases(folder: Path, tiny_backbone: TinyBackbone, count: int, seed: int = 0) -> Cases:
    """Labels that look alike, lists as text, numbers in many spellings; no label is lost or read as another value.

    Args:
        folder: For the files.
        tiny_backbone: Tiny weights of an architecture.
        count: How many cases.
        seed: Of the choices.

    Yields:
        `fit` on such tables.
    """
    for number in range(count):
        random = _random("labels", number, seed)
        here = folder / str(number)
        here.mkdir(parents=True)
        make = (_look_alikes, _lists, _numbers)[number % 3]
        problem, labels, done, check = make(random, here)
        stream = io.StringIO(newline="")
        writer = csv.writer(stream)
        writer.writerow(["text", "label"])
        writer.writerows([f"w{10 + row} w5", label] for row, label in enumerate(labels))
        (here / "rows.csv").write_text(stream.getvalue())
        words = (*command(TABLE, tiny_backbone, folder), "--data.train_file=rows.csv", "--data.validation_share=0.3")
        yield Case("meaning of labels", done, (*words, f"--data.problem_type={problem}"), here, check)


Labels = tuple[str, list[str], str, Callable[[str], str]]


def _exported_labels(here: Path) -> set[str]:
    (config,) = here.rglob("adapter/config/config.json")
    return set(json.loads(config.read_text())["id2label"].values())


def _look_alikes(random: np.random.Generator, here: Path) -> Labels:
    name, change = pick(list(LOOK_ALIKES.items()), random)
    labels = ["yes", "no", change("yes"), "no"] * 10

    def check(said: str) -> str:
        written = {label.strip() for label in labels}
        names = {label.strip() for label in _exported_labels(here)}
        if names != written and "missing" not in said:
            return f"classes {sorted(names)} for labels {sorted(written)}"
        twins = name in {"case", "zero width"}  # a space at the end is not part of a label
        return f"nothing is said of {name}" if twins and "warning" not in said else ""

    return "single_label_classification", labels, f"look-alike: {name}", check


def _lists(random: np.random.Generator, here: Path) -> Labels:
    spelling = pick([str, json.dumps, ", ".join, "|".join, ";".join, "['{}']".format], random)
    labels = [spelling(["a", "b"][: 1 + row % 2]) for row in range(40)]

    def check(said: str) -> str:
        names = _exported_labels(here)
        return "" if names == {"a", "b"} or "warning" in said else f"classes {sorted(names)} for {labels[:2]}"

    return "multi_label_classification", labels, f"lists as {labels[1]!r}", check


def _numbers(random: np.random.Generator, here: Path) -> Labels:
    del here
    odd = pick(["1e-3", " 3.5 ", "1,234.5", "1,5", "1_000", "nan", "inf", "0x10", "1.234,5", "\u0661", "--1"], random)
    right = odd in {"1e-3", " 3.5 ", "1,234.5"}
    return (
        "regression",
        [odd, *(str(row / 4) for row in range(39))],
        f"a number {odd!r}",
        lambda _: "" if right else f"{odd!r} was taken for a number",
    )


def vocabulary_cases(folder: Path, tiny_backbone: TinyBackbone, count: int, seed: int = 0) -> Cases:
    """Tokens added beyond the model's embeddings; refused exactly if the data has one.

    Args:
        folder: For the files.
        tiny_backbone: Tiny weights of an architecture.
        count: How many cases.
        seed: Of the choices.

    Yields:
        `fit` with such a tokenizer.
    """
    for number in range(count):
        random = _random("vocabulary", number, seed)
        here = Path(shutil.copytree(tiny_backbone("bert"), folder / str(number)))
        tokenizer = AutoTokenizer.from_pretrained(str(here))
        special, used = bool(random.integers(2)), bool(random.integers(2))
        tokenizer.add_tokens([f"<new{index}>" for index in range(int(random.integers(1, 300)))], special_tokens=special)
        tokenizer.save_pretrained(str(here))
        rows = "".join(f"w{10 + row} w5{' <new0>' * used},{'yes' if row % 2 else 'no'}\n" for row in range(40))
        (here / "rows.csv").write_text(f"text,label\n{rows}")
        words = (*command(TABLE, tiny_backbone, folder), f"--model.backbone={here}", "--data.train_file=rows.csv")
        outside = len(tokenizer) > 200 and tokenizer.convert_tokens_to_ids("<new0>") >= 200
        wrong = "a token without an embedding was trained on" if used and outside and not special else ""
        done = f"{len(tokenizer)} tokens, the first new one {'used' if used else 'not used'}"
        yield Case("vocabulary", done, (*words, "--data.validation_share=0.3"), here, lambda _, wrong=wrong: wrong)


def damage_cases(folder: Path, tiny_backbone: TinyBackbone, count: int, seed: int = 0) -> Cases:
    """Weights and optimizer state that are not finite, or of other shapes or dtypes; never loaded.

    Args:
        folder: For the files.
        tiny_backbone: Tiny weights of an architecture.
        count: How many cases.
        seed: Of the choices.

    Yields:
        `validate` and `fit` on such checkpoints.
    """
    run = trained_run("CLINC150 JSON", folder, tiny_backbone)
    damages: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "NaN": lambda tensor: tensor.clone().fill_(torch.nan),
        "one inf": lambda tensor: tensor.clone().index_put_((torch.tensor([0]),), torch.tensor(torch.inf)),
        "transposed and longer": lambda tensor: torch.zeros([*reversed(tensor.shape), 2]),
        "no rows": lambda tensor: tensor[:0],
        "one row more": lambda tensor: torch.cat([tensor, tensor[:1]]),
        "integers": lambda tensor: tensor.long(),
    }
    for number in range(count):
        random = _random("damage", number, seed)
        checkpoint = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
        where = ("state_dict", "optimizer")[number % 2]
        tensors = checkpoint["state_dict"]
        if where == "optimizer":
            state = checkpoint["optimizer_states"][0]["state"]
            tensors = state[pick(sorted(state), random)]
        sized = [key for key, value in tensors.items() if isinstance(value, torch.Tensor) and value.dim() > 0]
        key, damage = pick(sized, random), pick(sorted(damages), random)
        tensors[key] = damages[damage](tensors[key])
        path = folder / f"{number}.ckpt"
        torch.save(checkpoint, path)
        stage = "fit" if where == "optimizer" else pick(["fit", "validate"], random)
        more = ["--trainer.max_epochs=9", "--trainer.logger.save_dir=again"] if stage == "fit" else []
        words = (stage, f"--config={run / 'config.yaml'}", f"--ckpt_path={path}", *more)
        done = f"{stage}: {damage} in {where} {key}"
        yield Case("damaged tensors", done, words, folder / "data", lambda _, done=done: f"it was loaded: {done}")
