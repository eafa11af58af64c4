"""The files of a diagnosis: all numbers as JSON, and the list of modules to skip as a partial config."""

from pathlib import Path

import yaml

from lora_lightning.diagnosis.diagnosis_folder import FINDINGS, SKIP_LIST
from lora_lightning.diagnosis.findings import Findings
from lora_lightning.diagnosis.stored import as_json
from lora_lightning.diagnosis.verdict_names import VerdictName
from lora_lightning.diagnosis.verdicts import State
from lora_lightning.reports.study_json import json_text
from lora_lightning.runs.files import save_text

PROOFS = {State.YES: "proven by training", State.NO: "refuted by training"}
PROOFS |= dict.fromkeys((State.UNDECIDED, State.MISSING), "not proven by training")


def write_findings(findings: Findings, folder: Path) -> Path:
    """Writes all numbers.

    Args:
        findings: What was found.
        folder: Where to; must exist.

    Returns:
        `diagnosis.json`. Differences of the metric are in its stored unit.

    Raises:
        TrainingError: If it cannot be written.
    """
    return save_text(folder / FINDINGS, json_text(as_json(findings)))


def write_skip_list(findings: Findings, folder: Path) -> Path | None:
    """Writes the list of modules to leave unquantized, with those skipped before, as a partial config of `fit`.

    Args:
        findings: What was found.
        folder: Where to; must exist.

    Returns:
        `skip_modules.yaml`; `None` if there is no list.

    Raises:
        TrainingError: If it cannot be written.
    """
    choice = None if findings.sensitivity is None else findings.sensitivity.skip
    if choice is None or not choice.modules:
        (folder / SKIP_LIST).unlink(missing_ok=True)
        return None
    verdict = next(each for each in findings.verdicts if each.name is VerdictName.SKIP_LIST_PROVEN)
    proof = " ".join(f"{PROOFS[verdict.state]}: {verdict.sentence}".split())  # one line, as a comment has to be
    head = f"# Modules that the diagnosis {findings.name} would leave unquantized, for {100 * choice.share:.3g} % more "
    head += f"memory of the weights; {proof}\n# lora-lightning fit --config QLORA.yaml --config {SKIP_LIST}\n"
    content = {"model": {"init_args": {"quantization": {"skip_modules": [*findings.skipped, *choice.modules]}}}}
    return save_text(folder / SKIP_LIST, head + yaml.safe_dump(content, sort_keys=False))
