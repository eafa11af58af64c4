"""Data files of every format, changed at random: their bytes, and by format their values, rows and columns."""

import copy
import csv
import io
import json
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from tests.conftest import TinyBackbone
from tests.fuzzing.outcome import Case
from tests.fuzzing.trees import any_place, at, is_leaf, misspelt, pick
from tests.test_configs import CHAT_TEMPLATE, CONFIGS
from tests.tiny_data import (
    save_tiny_clinc150,
    save_tiny_instructions,
    save_tiny_squad,
    save_tiny_table,
    save_tiny_wikitext,
)
from tests.tiny_glue import FOLDERS, save_tiny_glue

Mutation = tuple[str, bytes]
Rows = list[dict[str, Any]]

LONG = 200_000  # characters of a text that no row has
VALUES: list[Any] = [None, True, 0, -1, 10**30, 1.5, float("nan"), float("inf"), [], {}, [[]], {"a": [1]}]
WORDS = [
    "",
    " ",
    "\x00",
    "\ud800",
    "w1\r\nw2",
    "\u2028w1",
    "\ufeff",
    '"',
    "a\tb",
    "oos",
    "-1",
    "nan",
    "w1 " * (LONG // 3),
]


@dataclass(frozen=True)
class Format:
    """A kind of data that the program reads.

    Attributes:
        config: The shipped config that reads it.
        family: Of the tiny backbone.
        save: Writes the files into a folder; returns the options that name them, and the files to change.
    """

    config: str
    family: str
    save: Callable[[Path], tuple[list[str], list[str]]]


def _clinc150(folder: Path) -> tuple[list[str], list[str]]:
    save_tiny_clinc150(folder)
    return ["--data.data_dir=."], ["data_full.json"]


def _glue(task: str) -> Callable[[Path], tuple[list[str], list[str]]]:
    def save(folder: Path) -> tuple[list[str], list[str]]:
        save_tiny_glue(folder, task)
        end = "_matched" if task == "mnli" else ""
        files = [f"{FOLDERS[task]}/{name}.tsv" for name in ("train", f"dev{end}")]
        return ["--data.data_dir=.", "--data.allow_partial=true"], files

    return save


def _squad(folder: Path) -> tuple[list[str], list[str]]:
    save_tiny_squad(folder)
    return ["--data.data_dir=.", "--data.max_length=32", "--data.doc_stride=8"], ["train-v2.0.json", "dev-v2.0.json"]


def _wikitext(folder: Path) -> tuple[list[str], list[str]]:
    save_tiny_wikitext(folder)
    return ["--data.data_dir=.", "--data.context_length=30"], ["wiki.train.raw", "wiki.valid.raw"]


def _records(rows: Rows, ending: str, *options: str) -> Callable[[Path], tuple[list[str], list[str]]]:
    def save(folder: Path) -> tuple[list[str], list[str]]:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"rows{ending}").write_bytes(_written(rows, ending))
        return [f"--data.train_file=rows{ending}", *options], [f"rows{ending}"]

    return save


def _table(ending: str, label: str, problem: str) -> Callable[[Path], tuple[list[str], list[str]]]:
    def save(folder: Path) -> tuple[list[str], list[str]]:
        with save_tiny_table(folder / "source.csv", label=label).open(newline="") as stream:
            rows: Rows = list(csv.DictReader(stream))
        options = [f"--data.problem_type={problem}", "--data.text_pair_column=other", "--data.validation_share=0.3"]
        return _records(rows, ending, *options)(folder)

    return save


def _tiny_instructions() -> Rows:
    with tempfile.TemporaryDirectory() as name:
        return [json.loads(line) for line in save_tiny_instructions(Path(name)).read_text().splitlines()]


def _written(rows: Rows, ending: str) -> bytes:
    if ending == ".parquet":
        return _parquet_bytes(pa.Table.from_pylist(rows))
    if ending in {".json", ".jsonl"}:
        return (json.dumps(rows) if ending == ".json" else "\n".join(map(json.dumps, rows)) + "\n").encode()
    stream = io.StringIO(newline="")
    plain: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE, "quotechar": None}
    style = plain if ending == ".tsv" else {}
    writer = csv.DictWriter(stream, list(rows[0]), **style)
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue().encode()


TEXTS: Rows = [{"text": f"w{row} w{row + 1} w{row + 2} w5 w6", "id": row} for row in range(40)]
CHATS: Rows = [
    {"messages": [{"role": role, "content": f"w{row % 9} w3"} for role in ("user", "assistant") * (1 + row % 2)]}
    for row in range(40)
]
LM = ("--data.context_length=30", "--data.validation_share=0.2")
WIKITEXT, INSTRUCTIONS = "causal_lm/gpt2_wikitext2_lora.yaml", "causal_lm/gpt2_instructions_lora.yaml"
TABLE = "text_classification/minilm_lora.yaml"

FORMATS = {
    "CLINC150 JSON": Format("clinc150/minilm_lora.yaml", "bert", _clinc150),
    **{
        f"GLUE TSV/{task}": Format(f"glue/{task}_{model}_lora.yaml", "bert", _glue(task))
        for model, tasks in {"minilm": ("cola", "sst2", "mrpc", "stsb"), "roberta": ("mnli", "qnli")}.items()
        for task in tasks
    },
    "SQuAD JSON": Format("squad_v2/minilm_lora.yaml", "bert", _squad),
    "plain text/.raw": Format(WIKITEXT, "gpt2", _wikitext),
    **{
        f"plain text/{ending}": Format(WIKITEXT, "gpt2", _records(TEXTS, ending, *LM))
        for ending in (".json", ".jsonl", ".csv", ".tsv", ".parquet")
    },
    **{
        f"instructions/{ending}": Format(INSTRUCTIONS, "gpt2", _records(_tiny_instructions(), ending, *LM))
        for ending in (".json", ".jsonl", ".csv", ".parquet")
    },
    **{
        f"chats/{ending}": Format(INSTRUCTIONS, "chat", _records(CHATS, ending, "--data.chat_template=true", *LM))
        for ending in (".json", ".jsonl", ".parquet")
    },
    **{
        f"text classification/{ending}, {label}": Format(TABLE, "bert", _table(ending, label, problem))
        for label, problem in (
            ("word", "single_label_classification"),
            ("set", "multi_label_classification"),
            ("number", "regression"),
        )
        for ending in (".csv", ".tsv", ".jsonl", ".parquet")
    },
}


def data_cases(name: str, folder: Path, tiny_backbone: TinyBackbone, count: int, seed: int = 0) -> Iterator[Case]:
    """Changes a file of one format in many ways.

    Args:
        name: Of `FORMATS`.
        folder: For the files.
        tiny_backbone: Tiny weights of an architecture; `chat` is GPT-2 with a chat template.
        count: How many cases.
        seed: Of the choices; the same seed gives the same cases.

    Yields:
        `fit` on the changed data; each in a folder of its own, which is to be the working directory.
    """
    kind = FORMATS[name]
    options, files = kind.save(folder / "right")
    for number in range(count):
        random = np.random.default_rng([seed, zlib.crc32(name.encode()), number])
        file = pick(files, random)
        here = Path(shutil.copytree(folder / "right", folder / str(number)))
        mutation, content = changed((here / file).read_bytes(), Path(file).suffix, random)
        (here / file).write_bytes(content)
        yield Case(name, f"{file}: {mutation}", (*command(kind, tiny_backbone, folder), *options), here)


def command(kind: Format, tiny_backbone: TinyBackbone, folder: Path) -> list[str]:
    """`fit` with the format's config and a tiny backbone."""
    backbone = tiny_backbone("gpt2" if kind.family == "chat" else kind.family)
    if kind.family == "chat":
        backbone = Path(shutil.copytree(backbone, folder / "chatty", dirs_exist_ok=True))
        (backbone / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    words = ["fit", f"--config={CONFIGS / kind.config}", f"--model.backbone={backbone}", "--data.batch_size=4"]
    words += ["--data.cache_dir=cache", "--trainer.logger.save_dir=logs", "--trainer.accelerator=cpu"]
    if "callbacks" in (CONFIGS / kind.config).read_text():
        words += ["--trainer.callbacks=null"]
    return [*words, "--trainer.enable_progress_bar=false", "--trainer.limit_val_batches=2"]


def changed(content: bytes, ending: str, random: np.random.Generator) -> Mutation:
    """Changes a file's content.

    Args:
        content: Right content.
        ending: Of the file's name; knows the format.
        random: Makes the choices.

    Returns:
        What was done, in words, and the new content.
    """
    own = {".json": _json, ".jsonl": _json_lines, ".csv": _cells, ".tsv": _cells, ".parquet": _columns}.get(ending)
    if own is not None and random.random() < 0.65:
        return own(content, random)
    return _bytes(content, random)


def _bytes(content: bytes, random: np.random.Generator) -> Mutation:
    place = int(random.integers(len(content)))
    start, end = content[:place], content[place:]
    flipped = bytes([end[0] ^ 1 << int(random.integers(8))]) + end[1:]
    many = bytearray(content)
    for number in random.integers(len(many), size=20):
        many[number] ^= 1 << int(random.integers(8))
    text = content.decode("utf-8", "replace")
    return pick(
        [
            (f"cut at byte {place}", start),
            (f"begins at byte {place}", end),
            (f"a bit of byte {place} flipped", start + flipped),
            ("20 bits flipped", bytes(many)),
            (f"NUL at byte {place}", start + b"\0" + end),
            (f"byte {place} not UTF-8", start + b"\xff\xfe" + end),
            ("byte order mark", b"\xef\xbb\xbf" + content),
            ("two byte order marks", b"\xef\xbb\xbf" * 2 + content),
            ("UTF-16", text.encode("utf-16", "replace")),
            ("UTF-32", text.encode("utf-32", "replace")),
            ("Latin-1", text.replace("w", "\u00e4").encode("latin-1", "replace")),
            ("CRLF", content.replace(b"\n", b"\r\n")),
            ("CR alone", content.replace(b"\n", b"\r")),
            ("no line ends", content.replace(b"\n", b"")),
            ("empty", b""),
            ("space only", b" \n\t\n  "),
            ("one NUL", b"\0"),
            ("twice", content + content),
            ("bytes at random", random.bytes(500)),
            ("brackets 100,000 deep", b"[" * 100_000),
            (f"braces at byte {place}", start + b'{"a":' * 2000 + end),
            ("a number of 5,000 digits", content.replace(b"w1", b"1" * 5000).replace(b'"', b"", 2)),
            ("the head of a zip file", b"PK\x03\x04" + content),
            ("a web page", b"<!DOCTYPE html><html><body>404 not found</body></html>\n"),
        ],
        random,
    )


def _odd(random: np.random.Generator) -> Any:
    return copy.deepcopy(pick(VALUES + WORDS, random))


def changed_tree(root: Any, random: np.random.Generator) -> str:
    """Changes one place of nested lists and mappings, in place; says in words what it did."""
    if not root:
        return "nothing left to change"
    place = any_place(root, random)
    holder, key = at(root, place[:-1]), place[-1]
    leaf = any_place(root, random, is_leaf)
    way = int(random.integers(7))
    if way <= 1:
        place, value = leaf, _odd(random)
        at(root, leaf[:-1])[leaf[-1]] = value
        done = f"= {str(value)[:30]!r}"
    elif way == 2:
        holder[key] = _odd(random)
        done = f"= {str(holder[key])[:30]!r}"
    elif way == 3:
        del holder[key]
        done = "is gone"
    elif way == 4 and isinstance(holder, dict):
        new = misspelt(str(key), random)
        holder[new] = holder.pop(key)
        done = f"is called {new!r}"
    elif isinstance(holder, list):
        holder.append(copy.deepcopy(holder[int(key)]))
        done = "twice"
    else:
        holder[key] = [holder[key]]
        done = "in a list"
    return f"{'.'.join(map(str, place))} {done}"


def _json(content: bytes, random: np.random.Generator) -> Mutation:
    root = json.loads(content)
    if random.random() < 0.1:
        value = _odd(random)
        return f"only {str(value)[:30]!r}", json.dumps(value).encode()
    done = "; ".join(changed_tree(root, random) for _ in range(int(random.integers(1, 3))))
    return done, json.dumps(root).encode()


def _json_lines(content: bytes, random: np.random.Generator) -> Mutation:
    rows = [json.loads(line) for line in content.splitlines()]
    done = "; ".join(changed_tree(rows, random) for _ in range(int(random.integers(1, 3))))
    return done, "\n".join(map(json.dumps, rows)).encode() + b"\n"


def _cells(content: bytes, random: np.random.Generator) -> Mutation:
    """Changes cells, rows and the header of a table, without care for its quotes."""
    text = content.decode("utf-8-sig")
    mark = "\t" if "\t" in text else ","
    rows = [line.split(mark) for line in text.splitlines()]
    row, column = int(random.integers(len(rows))), int(random.integers(len(rows[0])))
    place = f"cell {column + 1} of line {row + 1}"
    way = int(random.integers(9))
    if way <= 2:
        value = str(_odd(random))
        rows[row][min(column, len(rows[row]) - 1)] = value
        done = f"{place} = {value[:30]!r}"
    elif way == 3:
        rows[row] = rows[row][:column] + rows[row][column + 1 :]
        done = f"no {place}"
    elif way == 4:
        rows[row].insert(column, "w1")
        done = f"one more {place}"
    elif way == 5:
        rows.insert(row, rows[row])
        done = f"line {row + 1} twice"
    elif way == 6:
        rows.insert(row, [""])
        done = f"an empty line {row + 1}"
    elif way == 7:
        rows[0][min(column, len(rows[0]) - 1)] = misspelt(rows[0][min(column, len(rows[0]) - 1)], random)
        done = f"the name of column {column + 1} misspelt"
    else:
        done, mark = "another separator", {"\t": ",", ",": ";"}[mark]
    return done, "\n".join(mark.join(cells) for cells in rows).encode("utf-8", "surrogatepass")


def _parquet_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    parquet.write_table(table, sink)
    return bytes(sink.getvalue())


def _columns(content: bytes, random: np.random.Generator) -> Mutation:
    """Gives a column of a Parquet file another type, another name, or none."""
    table = parquet.read_table(pa.BufferReader(content))
    number = int(random.integers(table.num_columns))
    name, count = table.column_names[number], table.num_rows
    columns: dict[str, Any] = {
        "integers": pa.array(range(count)),
        "floating numbers, one of them none": pa.array([float("nan"), *range(count - 1)], pa.float64()),
        "bytes": pa.array([b"\xff\x00w1"] * count),
        "lists": pa.array([["a", None]] * count),
        "objects": pa.array([{"a": 1}] * count),
        "nothing": pa.nulls(count),
        "times": pa.array([0] * count, pa.timestamp("ns", tz="Europe/Berlin")),
        "nanoseconds": pa.array([1] * count, pa.duration("ns")),
        "decimals": pa.array([1] * count).cast(pa.decimal128(38, 2)),
        "booleans": pa.array([True, False] * (count // 2) + [None] * (count % 2)),
        "a dictionary of texts": pa.array(["w1"] * count).dictionary_encode(),
        "large texts": pa.array(["w1 w2"] * count, pa.large_string()),
        "maps": pa.array([[("a", 1)]] * count, pa.map_(pa.string(), pa.int64())),
        "texts, some of them none": pa.array([None, "w1"] * (count // 2) + [None] * (count % 2)),
        "texts with NUL": pa.array(["w1\0w2"] * count),
        "dates": pa.array([2**20] * count, pa.int32()).cast(pa.date32()),
    }
    way = int(random.integers(len(columns) + 5))
    if way < len(columns):
        kind = list(columns)[way]
        return f"{name} holds {kind}", _parquet_bytes(table.set_column(number, name, columns[kind]))
    if way == len(columns):
        return f"no column {name}", _parquet_bytes(table.drop_columns([name]))
    if way == len(columns) + 1:
        return f"the column {name} twice", _parquet_bytes(table.append_column(name, table.column(number)))
    if way == len(columns) + 2:
        return "no rows", _parquet_bytes(table.slice(0, 0))
    if way == len(columns) + 3:
        return "one row", _parquet_bytes(table.slice(0, 1))
    return "no columns", _parquet_bytes(table.select([]))
