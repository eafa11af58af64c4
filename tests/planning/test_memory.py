"""Planned memory: against hand-made sums, against real tensors, and against itself at other depths and batch sizes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lora_lightning.backbones.gguf_origin import memory_to_load
from lora_lightning.compat.fake_tensors import FakeTensorMode
from lora_lightning.errors import ConfigurationError
from lora_lightning.planning import memory, plan_training
from lora_lightning.planning.layers import cut_to, depths_to_trace
from lora_lightning.planning.outline import build_outline
from lora_lightning.planning.plan import plan_from_arguments
from lora_lightning.planning.precisions import Precision, precisions_of, why_unavailable
from lora_lightning.planning.results import MemoryRow
from lora_lightning.planning.settings import read_settings
from lora_lightning.planning.sizes import format_size, parse_size
from lora_lightning.planning.step import BatchShape, StepTracer
from lora_lightning.planning.storage import Peak, StorageCounter
from lora_lightning.tasks import next_token
from lora_lightning.tasks.linear_cross_entropy import linear_cross_entropy
from tests.conftest import TinyBackbone
from tests.test_configs import CONFIGS, tiny_training
from tests.tiny_gguf import save_tiny_gguf


def test_the_counter_adds_what_lives_and_forgets_what_does_not() -> None:
    with FakeTensorMode():
        weight = nn.Parameter(torch.empty(256, 128))
        x = torch.empty(64, 128)
        counter = StorageCounter([weight], all_true=True)
        with counter:
            y = x @ weight.T  # 64 x 256 of 4 bytes
            assert counter.peak == Peak(64 * 256 * 4 + 64 * 128 * 4 * 0)
            z = y.relu()
            del y
            total = z.sum()
            assert counter.peak.total == 2 * 64 * 256 * 4
            counter.start_phase()
            assert counter.peak.total == 64 * 256 * 4 + 64  # z, and the sum in one aligned block
            weight.register_post_accumulate_grad_hook(counter.mark_gradient)  # type: ignore[no-untyped-call]
            total.backward()
            assert counter.peak.gradients in {0, 256 * 128 * 4}
            counter.start_phase()
            assert counter.peak.gradients == 256 * 128 * 4


def test_what_depends_on_values_is_answered() -> None:
    with FakeTensorMode():
        counter = StorageCounter([], all_true=False)
        with counter:
            mask = torch.empty(3, 5, dtype=torch.bool)
            assert torch.empty(3, 5, 7)[mask].shape == (15, 7)
            assert not mask.all()
            assert mask.nonzero().shape == (15, 2)


@pytest.fixture
def quickstart(tiny_backbone: TinyBackbone, tmp_path: Path) -> list[str]:
    """The quickstart on a tiny backbone."""
    return tiny_training([CONFIGS / "quickstart.yaml"], tiny_backbone, tmp_path)[1]


def config_row(words: list[str], **options: Any) -> MemoryRow:
    """The memory that the config itself needs; other precisions are not traced."""
    (row,) = plan_from_arguments(words, precisions="config", **options).memory
    return row


def test_full_fine_tuning_may_need_most_when_the_checkpoint_is_read(quickstart: list[str]) -> None:
    """A checkpoint holds the weights and both moments once more; gradients are gone by then."""
    words = [*quickstart, "--model.lora=null", "--data.batch_size=1", "--data.eval_batch_size=1"]
    words += ["--data.max_length=4"]
    plan = plan_from_arguments(words, precisions="config")
    (row,) = plan.memory
    assert (row.phase, row.gradients, row.activations) == ("checkpoint", 0, 3 * 4 * plan.trainable)
    assert row.peak == row.weights + 5 * 4 * plan.trainable + row.overhead
    (cuda,) = plan_from_arguments(words, precisions="config", device="cuda").memory
    assert cuda.phase != "checkpoint"  # it is read into host memory


def test_dora_on_a_quantized_base_holds_the_dequantized_weights(quickstart: list[str]) -> None:
    words = [*quickstart, "--model.quantization.bits=4", "--data.eval_batch_size=1"]
    plain, dora = config_row(words), config_row([*words, "--model.lora.use_dora=true"])
    assert dora.activations > plain.activations
    task = read_settings([*words, "--model.lora.use_dora=true"]).task
    refused = [row.name for row in precisions_of(task, "32-true") if why_unavailable(task, row)]
    assert refused == ["int8"]  # as `fit` refuses it


@pytest.mark.parametrize("bits", [4, 8])
def test_quantized_weights_take_what_bitsandbytes_takes(bits: int, quickstart: list[str]) -> None:
    words = [*quickstart, f"--model.quantization.bits={bits}"]
    row = config_row(words)
    task = read_settings(words).task
    task.configure_model()
    tensors = {id(each): each for each in [*task.parameters(), *task.buffers()]}
    size = sum(each.numel() * each.element_size() for each in tensors.values())
    for module in task.modules():
        weight, state = getattr(module, "weight", None), getattr(module, "state", None)
        if (quantized := getattr(weight, "quant_state", None)) is not None:
            size += quantized.absmax.numel() * quantized.absmax.element_size()
        if (scales := getattr(weight, "SCB", None)) is not None or (scales := getattr(state, "SCB", None)) is not None:
            size += scales.numel() * scales.element_size()
    assert row.weights == pytest.approx(size, rel=0.02)
    assert row.precision == {4: "NF4", 8: "int8"}[bits]


def test_a_trace_without_values_is_that_of_real_tensors(quickstart: list[str]) -> None:
    """The same step on tensors with values: what the fast dropout on CPUs draws in NumPy is the difference."""
    words = [*quickstart, "--model.base_dropout=0", "--model.lora.lora_dropout=0"]
    training = read_settings(words)
    build_outline(training.task)
    shape = BatchShape(8, 24, has_padding=True, is_packed=False)
    traced = StepTracer(training.task, None, head_is_linear=True).trace(shape, shape)
    task = read_settings(words).task
    task.configure_model()
    vars(task)["scale_summed_loss"] = lambda loss, *_: loss
    counter = StorageCounter([*task.parameters(), *task.buffers()], all_true=False)
    ids = torch.arange(8 * 24).reshape(8, 24) % 50
    mask = torch.ones_like(ids)
    mask[:, -1] = 0
    with counter:
        counter.start_phase()
        loss = task.training_step(  # type: ignore[call-arg]
            {"input_ids": ids, "attention_mask": mask, "labels": torch.zeros(8, dtype=torch.int64)}, 0
        )
        forward = counter.peak.total
        counter.start_phase()
        loss.backward()
        backward = counter.peak.total
    assert traced.forward.total == pytest.approx(forward, rel=0.02)
    assert traced.backward.total == pytest.approx(backward, rel=0.02)


def test_few_layers_tell_what_all_would_hold(tmp_path: Path, tiny_backbone: TinyBackbone) -> None:
    config = json.loads((tiny_backbone("bert") / "config.json").read_text()) | {"num_hidden_layers": 9}
    (tmp_path / "config.json").write_text(json.dumps(config))
    training = read_settings([f"--config={CONFIGS / 'quickstart.yaml'}", f"--model.backbone={tmp_path}"])
    task = training.task
    build_outline(task)
    model = task.transformers_model
    assert depths_to_trace(model, task.lora) == (2, 4)
    tracer, shape = StepTracer(task, None, head_is_linear=True), BatchShape(8, 24, has_padding=True, is_packed=False)
    found = {}
    for depth in (2, 4, 9):
        with cut_to(model, depth):
            found[depth] = tracer.trace(shape, shape)
    assert len(model.bert.encoder.layer) == 9  # type: ignore[union-attr,arg-type]
    for phase in ("forward", "backward"):
        two, four, nine = (getattr(found[depth], phase).total for depth in (2, 4, 9))
        assert two + 7 * (four - two) / 2 == pytest.approx(nine, rel=0.01)
        assert four > 1.2 * two


@pytest.mark.parametrize(
    ("more", "allowed"),
    [
        ([], (2, 4)),
        (["--model.lora.layers_to_transform=[3]"], (9,)),
        (["--model.lora.rank_pattern={layer.0: 4}"], (9,)),
    ],
    ids=str,
)
def test_layers_that_differ_are_all_traced(
    more: list[str], allowed: tuple[int, ...], tmp_path: Path, tiny_backbone: TinyBackbone
) -> None:
    config = json.loads((tiny_backbone("bert") / "config.json").read_text()) | {"num_hidden_layers": 9}
    (tmp_path / "config.json").write_text(json.dumps(config))
    more = [word.replace("layer.0", "layer.0.attention.self.query") for word in more]
    training = read_settings([f"--config={CONFIGS / 'quickstart.yaml'}", f"--model.backbone={tmp_path}", *more])
    build_outline(training.task)
    assert depths_to_trace(training.task.transformers_model, training.task.lora) == allowed


def test_the_largest_batch_fits_and_one_more_row_does_not(
    quickstart: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "overhead_of", lambda *_, **__: 0)
    limit = round(2.5 * config_row(quickstart).peak)
    row = config_row(quickstart, memory=limit)
    assert row.fits
    assert row.largest_batch is not None
    assert row.largest_batch > 4
    peaks = [
        config_row([*quickstart, f"--data.batch_size={rows}"]).peak
        for rows in (row.largest_batch, row.largest_batch + 1)
    ]
    assert peaks[0] <= 1.02 * limit
    assert peaks[1] > 0.98 * limit
    tight = config_row(quickstart, memory="1KiB")
    assert (tight.fits, tight.largest_batch) == (False, 0)


def test_checkpointing_and_precision_change_what_they_should(quickstart: list[str]) -> None:
    quickstart = [*quickstart, "--data.eval_batch_size=1"]  # the peak is in training
    plain = {row.precision: row for row in plan_from_arguments(quickstart).memory}
    assert list(plain) == ["float32", "bf16", "int8", "NF4"]
    assert plain["float32"].is_config
    assert plain["bf16"].weights == pytest.approx(plain["float32"].weights / 2, rel=0.01)
    assert plain["bf16"].activations < plain["float32"].activations  # its attention keeps dropout masks of its own
    assert plain["NF4"].weights < plain["int8"].weights < plain["float32"].weights
    assert plain["float32"].optimizer == 2 * plan_from_arguments(quickstart, precisions="none").trainable * 4
    saving = config_row([*quickstart, "--model.gradient_checkpointing=true"])
    assert saving.activations < 0.8 * plain["float32"].activations


def test_full_fine_tuning_has_no_quantized_rows_and_all_gradients(quickstart: list[str]) -> None:
    plan = plan_from_arguments([*quickstart, "--model.lora=null"])
    rows = {row.precision: row for row in plan.memory}
    assert "needs LoRA" in rows["NF4"].unavailable
    assert rows["float32"].optimizer == 2 * 4 * plan.trainable
    assert rows["float32"].phase != "forward" or rows["float32"].gradients == 4 * plan.trainable
    assert plan.as_json()["memory"][3]["peak"] is None


def test_another_precision_of_the_config_has_a_row_of_its_own(quickstart: list[str]) -> None:
    row = config_row([*quickstart, "--trainer.precision=bf16-mixed"])
    assert row.precision == "bf16-mixed"
    task = read_settings([*quickstart, "--model.quantization={bits: 4, type: fp4}"]).task
    assert [each.name for each in precisions_of(task, "32-true")] == ["32-true, fp4", "float32", "bf16", "int8", "NF4"]


@pytest.mark.parametrize(
    "more",
    [
        [],
        ["--trainer.precision=bf16-true"],
        ["--model.quantization={bits: 4, double_quantization: true, compute_dtype: float32}"],
        ["--model.quantization={bits: 4, type: fp4, skip_modules: [query]}", "--trainer.precision=bf16-mixed"],
        ["--model.quantization.bits=8"],
    ],
    ids=lambda more: " ".join(more) or "plain",
)
def test_the_options_of_a_row_give_that_row(more: list[str], quickstart: list[str]) -> None:
    def rows_of(words: list[str]) -> list[Precision]:
        training = read_settings(words)
        training.task.check_settings()
        return precisions_of(training.task, training.options.trainer.precision)

    for row in rows_of([*quickstart, *more]):
        options = [] if row.options == "as in the config" else row.options.split()
        (chosen,) = [each for each in rows_of([*quickstart, *more, *options]) if each.is_config]
        assert (chosen.name, chosen.trainer, chosen.quantization) == (row.name, row.trainer, row.quantization)
        assert bool(options) != row.is_config


def test_accumulated_gradients_are_all_there_in_a_backward_pass(quickstart: list[str]) -> None:
    words = [*quickstart, "--model.lora=null", "--data.batch_size=64"]
    assert measured(words).backward_gradients < measured(words).gradients
    accumulating = measured([*words, "--trainer.accumulate_grad_batches=4"])
    assert accumulating.backward_gradients == accumulating.gradients


def test_the_second_base_of_the_merge_check_is_counted_and_other_monitors_are_named(quickstart: list[str]) -> None:
    words = [word for word in quickstart if "callbacks" not in word]
    plain = plan_from_arguments([*words, "--trainer.callbacks=null"], precisions="config")
    assert not [note for note in plain.notes if "callbacks" in note]
    merging = [*words, "--trainer.callbacks=null", "--trainer.callbacks+=MergeEquivalence"]
    checked = plan_from_arguments(merging, precisions="config")
    assert checked.memory[0].phase == "merge check"
    assert checked.memory[0].activations > checked.memory[0].weights
    assert checked.memory[0].peak > plain.memory[0].peak
    assert any("(MergeEquivalence) hold is not counted, but for the second base" in note for note in checked.notes)


def test_validation_has_rows_of_its_own_length(tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    for name, words in (("train", 3), ("val", 12)):
        (tmp_path / f"{name}.csv").write_text("text,label\n" + f"{' '.join(['w1'] * words)},a\nw2,b\n" * 2)
    words = [f"--config={CONFIGS / 'text_classification' / 'minilm_lora.yaml'}"]
    words += [f"--model.backbone={tiny_backbone('bert')}", "--model.lora.modules_to_save=null"]
    words += [f"--data.train_file={tmp_path / 'train.csv'}", f"--data.validation_file={tmp_path / 'val.csv'}"]
    training = read_settings([*words, f"--data.cache_dir={tmp_path}"])
    assert training.evaluation_tokens - training.tokens == 12 - 3


def measured(words: list[str]) -> memory.Measure:
    """What a training in the config's own precision holds."""
    training = read_settings(words)
    training.task.check_settings()
    build_outline(training.task)
    (own,) = [each for each in precisions_of(training.task, "32-true") if each.is_config]
    return memory._measure(training, own, "cpu", head_is_linear=True, needs_slope=False)


@pytest.mark.parametrize(
    "name",
    ["causal_lm/gpt2_instructions_lora", "squad_v2/bert_lora", "synthetic/planted_rank", "glue/stsb_roberta_lora"],
)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_task_has_a_plan_on_both_devices(
    name: str, device: str, tiny_backbone: TinyBackbone, tmp_path: Path
) -> None:
    _, words = tiny_training([CONFIGS / f"{name}.yaml"], tiny_backbone, tmp_path)
    plan = plan_from_arguments(words, device=device, memory="1GiB", precisions="config")
    (row,) = plan.memory
    assert row.fits
    assert row.activations > 0
    assert (row.overhead > 0) is (device == "cpu")
    assert any("CUDA" in note for note in plan.notes) is (device == "cuda")


def test_a_gguf_file_is_dequantized_as_a_whole(tmp_path: Path) -> None:
    (tmp_path / "gguf").mkdir()
    model = save_tiny_gguf(tmp_path / "gguf")
    file = (tmp_path / "gguf/tiny.gguf").stat().st_size
    weights = 4 * (sum(each.numel() for each in model.parameters()) + 2 * 32 * 64 // 2)
    found = memory_to_load(str(tmp_path / "gguf"))
    assert weights + file == pytest.approx(found, rel=0.02)
    model.save_pretrained(tmp_path / "plain")
    assert memory_to_load(str(tmp_path / "plain")) == 0


def test_loading_may_need_most() -> None:
    step = memory.Linear(0, 10)
    measure = memory.Measure(100, 1, 2, step, step, 1, 30, 3, 0, loading=500)
    assert measure.parts(1) == ("loading", 500 - 100 - 2, 0)
    assert measure.parts(50)[0] == "forward"


def test_a_language_models_loss_is_that_of_the_device(
    tiny_backbone: TinyBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU it has a function of its own, which holds fewer logits than PyTorch's."""
    _, words = tiny_training([CONFIGS / "causal_lm/gpt2_instructions_lora.yaml"], tiny_backbone, tmp_path)
    shape = BatchShape(2, 12, has_padding=False, is_packed=False)
    asked: list[int] = []

    def watched(hidden: Tensor, *rest: Any) -> Tensor:
        asked.append(len(hidden))
        return linear_cross_entropy(hidden, *rest)

    monkeypatch.setattr(next_token, "linear_cross_entropy", watched)
    for device, found in (("cuda", []), ("cpu", [2 * 12])):
        task = read_settings(words).task
        build_outline(task)
        StepTracer(task, None, head_is_linear=True, device=device).trace(shape, None)
        assert asked == found


def test_the_python_function_takes_a_mapping_and_overrides(quickstart: list[str], tmp_path: Path) -> None:
    words = dict(word[2:].split("=", 1) for word in quickstart)
    config = words.pop("config")
    plan = plan_training(config, {**words, "model.lora.r": 2}, precisions="none", output=tmp_path / "plan")
    assert plan.r == 2
    assert not plan.memory
    assert {path.name for path in (tmp_path / "plan").iterdir()} == {"plan.json", "ranks.png", "ranks.svg"}
    with pytest.raises(ConfigurationError, match="exists; choose another folder"):
        plan_training(config, words, precisions="none", output=tmp_path / "plan")


@pytest.mark.parametrize(
    ("text", "size"), [("24GiB", 24 * 2**30), ("16 GB", 16 * 10**9), ("1.5 MiB", 3 * 2**19), ("7B", 7)]
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "24", "GiB", "-1GiB", "0GiB", "24 Gigabyte", "nan GiB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="a size with its unit is needed"):
        parse_size(text)


def test_sizes_are_written_with_three_digits() -> None:
    assert [format_size(size) for size in (7, 1397880, 999 * 2**20, 24 * 2**30)] == [
        "7 B",
        "1.33 MiB",
        "999 MiB",
        "24 GiB",
    ]
