"""The page of model families: what the presets adapt, and what every family was tried with; writes docs/families.md.

Results are in benchmarks/families.json and are written after each family, so an interrupted command resumes.

Example:
    python benchmarks/families.py                   # the page alone, from the results there are
    python benchmarks/families.py --try             # also tries the families without results; 40 s a family
    python benchmarks/families.py --try mamba t5    # tries these again
"""

import argparse
import json
import os
import re
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from lora_lightning.lora.families import FAMILIES

os.environ["HF_HUB_OFFLINE"] = "1"

Results = dict[str, dict[str, dict[str, str]]]

RESULTS = Path(__file__).with_suffix(".json")
PAGE = Path(__file__).parent.parent / "docs/families.md"
TOP = """# Model families

`python benchmarks/families.py` writes this page from `lora_lightning/lora/families.py` and `benchmarks/families.json`.

The presets of `model.lora.target_modules` know the architectures below, by the `model_type` in a model's `config.json`.
`attention` adds its column to that of `attention-qv`, and `attention-mlp` adds its column to both; names are the ends
of module names, and a model has those that its size and version need. `all-linear` needs no entry: it adapts every
linear layer of any architecture except the head, if the model calls it and PEFT can name it. What a preset cannot
reach, such as the experts of a mixture ([docs/mixtures.md](mixtures.md)) or layers whose weights a state-space model
reads without calling them, is named with its share of the weights when training starts.

| `model_type` | `attention-qv` | `attention` adds | `attention-mlp` adds |
| --- | --- | --- | --- |
"""
TRIED = """
## What every family was tried with

`python benchmarks/families.py --try` makes a tiny random model of every family and, for each task that transformers has
for it, trains three steps with `all-linear`, each preset and a base in NF4, with all monitors of
`configs/callbacks/all_monitors.yaml`; it tests the best checkpoint, opens the exported adapter in plain PEFT on a
freshly loaded base, and compares the logits: they differ by at most 1e-5 of max(1, largest |logit|) in float32.
*Packed* is a causal language model trained with `data.packing: true`: documents of one row are exactly kept apart, or
the packing is refused. *Experts* is a mixture with adapters on its experts by `target_parameters`. A cell is *passed*;
*refused* in the sentence whose number it gives, before any weights load; or not applicable (-): transformers has no
such model, or the model no experts.

| `model_type` | classification | question answering | causal LM | packed | experts |
| --- | --- | --- | --- | --- | --- |
"""
APART = ("packed", "experts")  # settings with a column of their own
PASSED, REFUSED, NOT_APPLICABLE = "passed", "refused: ", "not applicable"


def page(results: Results) -> str:
    """The page's text.

    Args:
        results: Of `read_results`.

    Returns:
        Markdown.
    """
    known = sorted((name, family) for name, family in FAMILIES.items() if family.query_value)
    rows = [(name, *map(_names, (family.query_value, family.attention_rest, family.mlp))) for name, family in known]
    return TOP + _rows(rows) + (TRIED + _results(results) if results else "")


def _names(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _rows(rows: Sequence[Sequence[str]]) -> str:
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _results(results: Results) -> str:
    sentences: dict[str, tuple[int, str]] = {}
    rows = []
    for name in sorted(results):
        cells = results[name]
        apart = [{key: cells["causal LM"].get(key, NOT_APPLICABLE)} for key in APART]
        others = [{key: text for key, text in found.items() if key not in APART} for found in cells.values()]
        rows.append([name, *(_cell(found, sentences) for found in (*others, *apart))])
    numbered = "".join(f"{number}. {sentence}\n" for number, sentence in sentences.values())
    listed = f"\nThe sentences, of which the first of their kind is quoted:\n\n{numbered}" if numbered else ""
    untried = ", ".join(f"`{name}`" for name in sorted(FAMILIES.keys() - results.keys()))
    return _rows(rows) + listed + (f"\nNot tried since the code last changed for them: {untried}.\n" if untried else "")


def _cell(found: dict[str, str], sentences: dict[str, tuple[int, str]]) -> str:
    """One cell of the table: the settings that passed, and the numbers of the sentences of the others."""
    values = set(found.values())
    if values in ({PASSED}, {NOT_APPLICABLE}):
        return "-" if values == {NOT_APPLICABLE} else PASSED
    by_text: dict[str, list[str]] = {}
    for setting, text in found.items():
        by_text.setdefault(text, []).append(setting)
    parts = []
    for text, settings in by_text.items():
        which = "" if len(settings) == len(found) else f"{', '.join(settings)}: "
        if text == PASSED:
            parts.append(f"{which}{PASSED}")
        elif text.startswith(REFUSED):
            sentence = text.removeprefix(REFUSED)
            number, _ = sentences.setdefault(_kind(sentence), (len(sentences) + 1, sentence))
            parts.append(f"{which}refused ({number})")
        else:
            parts.append(f"{which}**{text}**")
    return "; ".join(parts)


def _kind(sentence: str) -> str:
    """A sentence without the names of models, modules and settings."""
    return re.sub(r"'[^']*'|\([^)]*\)|\b\w+For\w+|\b\w+Model\b|(?<=apart from )\w+|(?<=end in )[^;]*", "", sentence)


def read_results() -> Results:
    """The results that were written.

    Returns:
        By family, task and setting: `passed`, `refused: ...`, `not applicable`, or `failed: ...`, which is a fault.
    """
    return dict(json.loads(RESULTS.read_text(encoding="utf-8"))) if RESULTS.is_file() else {}


def try_families(names: Sequence[str]) -> None:
    """Tries families and writes the results after each.

    Args:
        names: Of `FAMILIES`; empty for those without results.
    """
    from tests.family_trials.trial import try_family  # noqa: PLC0415  # seconds of import, which the page does not need

    for name in names or [name for name in FAMILIES if name not in read_results()]:
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            found = try_family(name, Path(folder) / "trial")
        content = {**read_results(), name: found}
        RESULTS.write_text(json.dumps(dict(sorted(content.items())), indent=1) + "\n", encoding="utf-8")
        faults = [text for cells in found.values() for text in cells.values() if text.startswith("failed")]
        print(f"{name}: {time.perf_counter() - started:.0f} s", *faults, sep="\n  ", flush=True)


def main() -> None:
    """Tries families if asked to, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--try", dest="tried", nargs="*", metavar="FAMILY", help="families to try; those without results"
    )
    arguments = parser.parse_args()
    if arguments.tried is not None:
        try_families(arguments.tried)
    PAGE.write_text(page(read_results()), encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    main()
