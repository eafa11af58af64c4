"""What a plan counts is what `fit` trains and exports, for every shipped config and every variant."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from lora_lightning.backbones.export import export_model
from lora_lightning.planning.outline import build_outline
from lora_lightning.planning.plan import plan_from_arguments
from lora_lightning.planning.results import TrainingPlan
from lora_lightning.planning.settings import read_settings
from lora_lightning.tasks import CausalLanguageModelingTask
from lora_lightning.tasks.optimization import count_trainable_parameters
from tests.conftest import TinyBackbone
from tests.test_configs import CONFIGS, FULL, by_path, tiny_training
from tests.tiny_gguf import save_tiny_gguf


def counted(words: list[str]) -> TrainingPlan:
    """A plan without memory, which takes most of the time."""
    return plan_from_arguments(words, precisions="none")


def bytes_of_file(folder: Path) -> int:
    """Size of all tensors in a folder's safetensors file, from its header."""
    size = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as content:
            size += sum(tensor.numel() * tensor.element_size() for tensor in map(content.get_tensor, content.keys()))
    return size


def real_counts(words: list[str], folder: Path) -> tuple[int, int, int]:
    """Trainable and all parameters of the network that `fit` builds, and the bytes of what it exports."""
    task = read_settings(words).task
    torch.manual_seed(0)
    task.configure_model()
    export_model(task.built_network, None, folder, {})
    return (*count_trainable_parameters(task), bytes_of_file(folder))


@by_path(FULL)
def test_counts_of_shipped_configs_are_those_of_fit(path: Path, tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    config, words = tiny_training([path], tiny_backbone, tmp_path)
    plan = counted(words)
    trainable, total, size = real_counts(words, tmp_path / "exported")
    assert (plan.trainable, plan.total) == (trainable, total)
    assert sum(kind.trainable for kind in plan.modules) == trainable
    if "adalora" not in str(path):  # its ranks are not known before training, only their sum
        assert plan.adapter_bytes == size
    lora = config["model"]["init_args"].get("lora", {})
    assert bool(plan.ranks) is bool(plan.adapted_modules) is (lora is not None)


VARIANTS = {
    "dora": ["--model.lora.use_dora=true"],
    "rank_pattern": ["--model.lora.rank_pattern={query: 4, layer.1.attention.self.value: 6}"],
    "layers": ["--model.lora.layers_to_transform=[1]"],
    "excluded": ["--model.lora.exclude_modules=[query]"],
    "bias": ["--model.lora.bias=all"],
    "embeddings": ["--model.lora.modules_to_save=[word_embeddings]"],
    "tokens": ["--model.lora.trainable_token_indices=[5, 12]"],
    "pissa": ["--model.lora.init_lora_weights=pissa"],
    "olora": ["--model.lora.init_lora_weights=olora"],
    "eva": ["--model.lora.init_lora_weights=eva"],
    "lorafa": ["--model.optimization.lorafa=true"],
    "adalora": ["--model.lora.adalora.target_r=4", "--model.lora.adalora.init_r=8"],
    "full": ["--model.lora=null"],
    "head": ["--model.lora=null", "--model.freeze_backbone=true"],
    "int8": ["--model.quantization.bits=8"],
    "nf4": ["--model.quantization.bits=4", "--model.quantization.double_quantization=true"],
    "nf4 dora": ["--model.quantization.bits=4", "--model.lora.use_dora=true"],
    "loftq": ["--model.quantization.bits=4", "--model.lora.init_lora_weights=loftq"],
    "checkpointing": ["--model.gradient_checkpointing=true"],
}


@pytest.fixture
def quickstart(tiny_backbone: TinyBackbone, tmp_path: Path) -> list[str]:
    """The quickstart on a tiny backbone."""
    return tiny_training([CONFIGS / "quickstart.yaml"], tiny_backbone, tmp_path)[1]


@pytest.mark.parametrize("name", VARIANTS)
def test_counts_of_variants_are_those_of_fit(name: str, quickstart: list[str], tmp_path: Path) -> None:
    words = [*quickstart, *VARIANTS[name]]
    plan = counted(words)
    trainable, total, size = real_counts(words, tmp_path / "exported")
    assert (plan.trainable, plan.total) == (trainable, total)
    if name != "adalora":
        assert plan.adapter_bytes == size


@pytest.mark.parametrize(
    ("precision", "dtype"), [("bf16-true", torch.bfloat16), ("64-true", torch.float64), ("bf16-mixed", torch.float32)]
)
def test_files_have_the_precision_of_training(
    precision: str, dtype: torch.dtype, quickstart: list[str], tmp_path: Path
) -> None:
    words = [*quickstart, f"--trainer.precision={precision}"]
    task = read_settings(words).task
    task.configure_model()
    export_model(task.built_network.to(dtype), None, tmp_path / "exported", {})  # as Lightning's plugin does
    plan = counted(words)
    assert plan.adapter_bytes == bytes_of_file(tmp_path / "exported")
    assert plan.ranks[-1].adapter_bytes == counted([*words, f"--model.lora.r={plan.ranks[-1].r}"]).adapter_bytes


def test_a_continued_adapter_has_one_rank(quickstart: list[str], tmp_path: Path) -> None:
    task = read_settings(quickstart).task
    task.configure_model()
    export_model(task.built_network, None, tmp_path / "adapter", {})
    plan = counted([*quickstart, f"--model.adapter={tmp_path / 'adapter'}"])
    assert (plan.ranks, plan.r) == ([], 8)


@pytest.mark.parametrize(
    "more",
    [
        [],
        ["--model.lora.rank_pattern={query: 4}"],
        ["--model.lora.use_dora=true"],
        ["--model.lora.init_lora_weights=pissa"],
        ["--model.optimization.lorafa=true"],
        ["--model.lora.modules_to_save=[word_embeddings]"],
    ],
    ids=lambda more: "".join(more) or "plain",
)
def test_the_rank_table_is_what_each_rank_would_give(more: list[str], quickstart: list[str]) -> None:
    rows = counted([*quickstart, *more]).ranks
    # The longest side of a tiny layer is 64, and PiSSA has no more directions than the shorter side, 32.
    assert [row.r for row in rows] == ([1, 2, 4, 8, 16, 32] if "pissa" in str(more) else [1, 2, 4, 8, 16, 32, 64])
    for row in rows[1::3]:
        plan = counted([*quickstart, *more, f"--model.lora.r={row.r}"])
        assert (row.trainable, row.adapter_bytes) == (plan.trainable, plan.adapter_bytes)
        assert row.share == pytest.approx(plan.share)
        assert row.reduction == pytest.approx(plan.reduction)
    full = [row.full_rank_modules for row in rows]
    assert full[0] == 0
    if "rank_pattern" not in str(more):
        assert full[5] == len(counted(quickstart).adapted_modules)


def test_ranks_of_adalora_start_at_init_r(quickstart: list[str]) -> None:
    words = [*quickstart, "--model.lora.adalora.target_r=2", "--model.lora.adalora.init_r=4"]
    plan = counted(words)
    assert plan.r == 4
    larger = counted([*words, "--model.lora.adalora.init_r=16"])
    row = next(row for row in plan.ranks if row.r == 16)
    assert (row.trainable, row.adapter_bytes) == (larger.trainable, larger.adapter_bytes)


def test_a_folder_with_only_its_config_is_planned_like_the_complete_one(
    quickstart: list[str], tiny_backbone: TinyBackbone, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_text((tiny_backbone("roberta") / "config.json").read_text())
    complete = counted([*quickstart, f"--model.backbone={tiny_backbone('roberta')}"])
    plan = counted([*quickstart, f"--model.backbone={bare}"])
    assert (plan.trainable, plan.total, plan.adapter_bytes) == (
        complete.trainable,
        complete.total,
        complete.adapter_bytes,
    )
    assert any("assumed to lack only the head (classifier)" in note for note in plan.notes)
    assert any("tokenizer is not on this machine" in note for note in plan.notes)
    assert not any("assumed" in note for note in complete.notes)


def test_a_finished_classifier_has_a_pooler(tmp_path: Path, tiny_backbone: TinyBackbone) -> None:
    """DeBERTa's pooler trains in full if the checkpoint lacks it, and gets an adapter if the checkpoint has it."""
    config = json.loads((tiny_backbone("deberta-v2") / "config.json").read_text())
    words = [f"--config={CONFIGS / 'quickstart.yaml'}", f"--model.backbone={tmp_path}"]
    found = []
    for architecture in ("DebertaV2ForMaskedLM", "DebertaV2ForSequenceClassification"):
        (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": [architecture]}))
        found.append({kind.kind for kind in counted(words).modules if kind.adapted == 0})
    assert found == [{"pooler.dense", "classifier"}, {"classifier"}]


def test_tied_weights_in_a_gguf_file_are_counted_once(tmp_path: Path) -> None:
    model = save_tiny_gguf(tmp_path)
    task = CausalLanguageModelingTask(str(tmp_path), lora=None)
    network = build_outline(task).network
    assert sum(parameter.numel() for parameter in network.parameters()) == model.num_parameters()
    assert {parameter.device.type for parameter in network.parameters()} == {"meta"}
