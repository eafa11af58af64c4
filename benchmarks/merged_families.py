"""Merges an adapter on a tiny random model of every family, and compares logits in a fresh process; for docs/merge.md.

Each family has a tiny random model, the first of a causal language model, a classifier and a question answerer that
transformers has for it, and a random adapter of r = 4 on all linear layers. `merge` writes a folder in float32. When
all are written, one fresh process, in which PEFT and this package cannot be imported, loads each folder with
transformers, saves it, and loads that once more. The table has the largest difference from the adapter model's logits
on 16 rows of random tokens.

Results are in benchmarks/merged_families.json; the table in docs/merge.md is written from them.

Example:
    python benchmarks/merged_families.py                  # the page alone, from the results there are
    python benchmarks/merged_families.py --merge          # merges every family without a result; 5 s a family
    python benchmarks/merged_families.py --merge t5 opt   # merges these again
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

from lora_lightning.lora.families import FAMILIES

os.environ["HF_HUB_OFFLINE"] = "1"

RESULTS = Path(__file__).with_suffix(".json")
PAGE = Path(__file__).parent.parent / "docs/merge.md"
BEGIN, END = "<!-- families: written by benchmarks/merged_families.py -->\n", "<!-- end of families -->\n"
R = 4
UPDATE = (
    0.1  # standard deviation of what is added to A, B and a head: enough to move logits, not so much as to saturate
)
TOLERANCE = 1e-4  # of max(1, largest |logit|), as in `merge`
Results = dict[str, dict[str, Any]]
FRESH = """
import json, runpy, sys
for blocked in ("peft", "lora_lightning"):
    sys.modules[blocked] = None
requests = json.load(open(sys.argv[1]))
load_and_run = runpy.run_path(sys.argv[2])["load_and_run"]
for request in requests:
    try:
        answer = load_and_run(request)
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {error}"}
    json.dump(answer, open(request["result"], "w"))
"""


def read_results() -> Results:
    """What was measured so far, by family."""
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}


def merge_families(names: Sequence[str]) -> None:
    """Merges families, and measures all of them in one fresh process.

    Args:
        names: transformers' names of architectures.
    """
    from lora_lightning.artefacts import fresh_process  # noqa: PLC0415  # seconds of import, which the page needs not

    with tempfile.TemporaryDirectory() as folder:
        prepared, results = {}, read_results()
        for name in names:
            found = _prepare(name, Path(folder) / name)
            print(f"{name}: {found.get('failure', 'merged')}", flush=True)
            if "failure" in found:
                results[name] = found
            else:
                prepared[name] = found
        requests = Path(folder) / "requests.json"
        requests.write_text(json.dumps([found["request"] for found in prepared.values()]))
        command = [sys.executable, "-P", "-c", FRESH, str(requests), fresh_process.__file__]
        subprocess.run(command, check=True, cwd=folder)  # noqa: S603  # this interpreter and our own files
        results |= {name: _measure(found) for name, found in prepared.items()}
    RESULTS.write_text(json.dumps(dict(sorted(results.items())), indent=1) + "\n", encoding="utf-8")


def _prepare(name: str, folder: Path) -> dict[str, Any]:
    """Merges the adapter of a family, and keeps what the fresh process needs and must find."""
    from lora_lightning.artefacts import FreshProcessCheck, merge_job  # noqa: PLC0415

    later = patch.object(merge_job, "run_in_fresh_process", lambda *_: FreshProcessCheck(0.0, 0.0, 1.0))
    try:
        with warnings.catch_warnings(), later:  # one fresh process for all comes afterwards
            warnings.simplefilter("ignore")
            return _merge(name, folder)
    except Exception as error:  # noqa: BLE001  # whatever is raised is a fault, and the table says which
        return {"failure": " ".join(str(error).replace(f"{folder}/", "").split())}


def _merge(name: str, folder: Path) -> dict[str, Any]:
    import torch  # noqa: PLC0415

    from lora_lightning.artefacts import merge  # noqa: PLC0415
    from lora_lightning.artefacts.adapter_folder import open_adapter_folder  # noqa: PLC0415
    from lora_lightning.artefacts.observers import raw_logits  # noqa: PLC0415
    from lora_lightning.artefacts.reload_check import some_batches, write_request  # noqa: PLC0415

    task = _export(name, folder)
    merged = merge(folder / "adapter", folder / "merged")
    opened = open_adapter_folder(folder / "adapter")
    batches = some_batches(opened.observer.batches)
    with torch.no_grad():
        expected = [raw_logits(opened.network, batch, torch.device("cpu")).float() for batch in batches]
    (folder / "scratch").mkdir()
    request = write_request(
        folder / "scratch", folder / "merged", opened.auto_class, batches, torch.device("cpu"), opened.tokenizer
    )
    effect = merged.written.adapter_effect.max_logit_difference
    return {"task": task, "request": request, "batches": batches, "expected": expected, "effect": effect}


def _export(name: str, folder: Path) -> str:
    """Writes the model and the adapter of a family; returns the task."""
    import torch  # noqa: PLC0415

    from lora_lightning.backbones import load_tokenizer  # noqa: PLC0415
    from lora_lightning.backbones.export import export_model  # noqa: PLC0415
    from lora_lightning.errors import LoraLightningError  # noqa: PLC0415
    from lora_lightning.lora.config import LoraSettings  # noqa: PLC0415
    from lora_lightning.metrics import LabelSpace  # noqa: PLC0415
    from tests.family_trials.tiny_architectures import save_tiny_model  # noqa: PLC0415
    from tests.family_trials.trial import TASKS, exists  # noqa: PLC0415

    save_tiny_model(name, folder / "model")
    kinds = [kind for kind in ("causal LM", "classification", "question answering") if exists(name, kind)]
    for kind in kinds:
        task: Any = TASKS[kind][0](str(folder / "model"), lora=LoraSettings(r=R, target_modules="all-linear"))
        task.adopt_labels(LabelSpace(["no", "yes", "perhaps"]))
        try:
            task.check_settings()
        except LoraLightningError:  # such as an encoder as a language model
            if kind == kinds[-1]:
                raise
        else:
            break
    task.configure_model()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in task.parameters():
            if parameter.requires_grad:
                parameter.add_(UPDATE * torch.randn_like(parameter))
    task.eval()
    export_model(task.network, load_tokenizer(task.backbone), folder / "adapter", task.export_files())
    return kind


def _measure(found: dict[str, Any]) -> dict[str, Any]:
    """What the fresh process found."""
    from safetensors.torch import load_file  # noqa: PLC0415

    from lora_lightning.artefacts.reload_check import compare_outputs  # noqa: PLC0415

    answer = json.loads(Path(found["request"]["result"]).read_text())
    if "error" in answer or answer["missing"] or answer["modules"]:
        return {"task": found["task"], "failure": answer.get("error") or f"{answer['missing']} {answer['modules']}"}
    outputs = load_file(found["request"]["outputs"])
    checked = compare_outputs(found["expected"], found["batches"], outputs, ("first", "again"))
    return {
        "task": found["task"],
        "largest": checked.largest_logit,
        "effect": found["effect"],
        "first": checked.max_logit_difference,
        "again": checked.max_difference_after_saving_again,
    }


def table(results: Results) -> str:
    """The part of the page.

    Args:
        results: From `read_results`.

    Returns:
        Markdown.
    """
    measured = {name: found for name, found in results.items() if "failure" not in found}
    failed = {name: found["failure"] for name, found in results.items() if "failure" in found}
    worst = {
        place: max((found[place] / max(1.0, found["largest"]) for found in measured.values()), default=0.0)
        for place in ("first", "again")
    }
    summary = (
        f"Of {len(results)} families {len(measured)} merge. Their logits move by at most {worst['first']:.1e} of "
        f"max(1, largest logit), and by {worst['again']:.1e} more after transformers saved and loaded the folder once "
        f"more; the limit is {TOLERANCE:.0e}."
    )
    lines = [
        "",
        summary,
        "",
        "| `model_type` | model | largest logit | the adapter moves logits by | merged, fresh process | saved again |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
        *(
            f"| {name} | {found['task']} | {found['largest']:.2f} | {found['effect']:.2f} | {found['first']:.1e} | "
            f"{found['again']:.1e} |"
            for name, found in sorted(measured.items())
        ),
        "",
        *(f"- `{name}`: {sentence}" for name, sentence in sorted(failed.items())),
    ]
    return "\n".join(lines).rstrip() + "\n\n"


def write_page() -> None:
    """Writes the table into docs/merge.md, between its marks."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}{table(read_results())}{END}{after}", encoding="utf-8")


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--merge", nargs="*", metavar="MODEL_TYPE", help="merge families; all without a result by default"
    )
    options = parser.parse_args()
    if options.merge is not None:
        done = read_results()
        merge_families(options.merge or [name for name in FAMILIES if name not in done])
    write_page()


if __name__ == "__main__":
    main()
