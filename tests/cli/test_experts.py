"""Adapters on the experts of a mixture from end to end: every monitor, checkpoints, test, resume, export, NF4."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from lora_lightning.cli.main import main
from tests.cli.test_causal_language_modeling import fit_words, text_words
from tests.conftest import TinyBackbone
from tests.tiny_data import save_tiny_wikitext

ROOT = Path(__file__).parents[2]
PARAMETERS = "[mlp.experts.gate_up_proj,mlp.experts.down_proj]"
EXPERTS = [f"--model.lora.target_parameters={PARAMETERS}", "--model.lora.lora_dropout=0"]


def words(backbone: Path, folder: Path) -> list[str]:
    """A run with every monitor."""
    fit = fit_words(backbone, folder, *text_words(save_tiny_wikitext(folder / "data"), folder), *EXPERTS)
    return ["fit", f"--config={ROOT / 'configs/callbacks/all_monitors.yaml'}", *fit[1:], "--trainer.max_epochs=1"]


@pytest.mark.parametrize("family", ["olmoe", "gpt_oss"])
@pytest.mark.parametrize("bits", [None, 4])
def test_every_monitor_measures_experts_and_plain_peft_opens_the_export(
    family: str, bits: int | None, tiny_backbone: TinyBackbone, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backbone = tiny_backbone(family)
    quantized = [] if bits is None else [f"--model.quantization.bits={bits}"]
    assert main([*words(backbone, tmp_path), *quantized]) == 0
    said = capsys.readouterr().out
    assert "merge check (adapter/, step" in said
    assert "frozen base: all" in said
    (run,) = (tmp_path / "run").glob("version_*")
    best = run / "checkpoints/best.ckpt"
    assert main(["test", f"--config={run / 'config.yaml'}", f"--ckpt_path={best}"]) == 0
    perplexity = next(line.split()[-1] for line in said.splitlines() if line.startswith("perplexity"))
    assert perplexity in capsys.readouterr().out
    report = json.loads((run / "rank_utilization.json").read_text())["adapters"]
    names = [name for name in report if "experts" in name]
    assert "model.layers.0.mlp.experts.down_proj[3]" in names
    assert len(names) == 2 * 2 * 4  # layers, parameters, experts
    for table in ("adapter_norms", "rank_utilization", "intruder_dimensions"):
        rows = pq.read_table(run / f"adapter_metrics/{table}.parquet").to_pylist()
        assert "model.layers.1.mlp.experts.gate_up_proj" in {row["module"] for row in rows}
        assert not [row for row in rows if "[" in row["module"]]
    config = json.loads((run / "adapter/adapter_config.json").read_text())
    assert config["target_parameters"] == sorted(config["target_parameters"])
    base = AutoModelForCausalLM.from_pretrained(backbone, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, run / "adapter")
    assert not [name for name, tensor in model.named_parameters() if "lora_B" in name and not tensor.any()]
