"""The task: exact means, gradients that weigh every label the same, checkpointed layers, generation."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Trainer
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2LMHeadModel

from lora_lightning.backbones.rms_norm import SWITCHED
from lora_lightning.errors import ConfigurationError
from lora_lightning.lora.config import LoraSettings
from lora_lightning.metrics import LabelSpace
from lora_lightning.tasks import (
    AdaptationTask,
    CausalLanguageModelingTask,
    GenerationSettings,
    OptimizationSettings,
    SequenceClassificationTask,
)
from lora_lightning.tasks.next_token import IGNORED
from tests.conftest import TinyBackbone
from tests.tiny_families import causal_model
from tests.tiny_models import DECODERS

NO_DROPOUT = {"lora": LoraSettings(r=4, lora_dropout=0.0), "base_dropout": 0.0}
Batch = dict[str, Tensor]


def batch_of(*learnt: int, length: int = 10, seed: int = 0) -> Batch:
    """A row for each number of labels in it."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(2, 200, (len(learnt), length), generator=generator)
    labels = torch.randint(2, 200, (len(learnt), length), generator=generator)
    for row, count in enumerate(learnt):
        labels[row, count:] = IGNORED
    return {"input_ids": tokens, "labels": labels, "attention_mask": torch.ones_like(tokens)}


def join(*batches: Batch) -> Batch:
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


class KeepsGradients(CausalLanguageModelingTask):
    """Remembers what each optimizer step was made of."""

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        super().on_before_optimizer_step(optimizer)
        self.seen: list[dict[str, Tensor]] = getattr(self, "seen", [])
        self.seen.append(gradients(self))


def gradients(task: AdaptationTask) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in task.named_parameters() if p.grad is not None}


def built(cls: Callable[..., AdaptationTask], folder: Path, **options: Any) -> Any:
    """A task with adapters that do something: B is not 0."""
    torch.manual_seed(0)
    task = cls(str(folder), **options)
    task.configure_model()
    with torch.no_grad():
        for name, parameter in task.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return task


def trainer(tmp_path: Path, **options: Any) -> Trainer:
    return Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def loader(*batches: Batch) -> DataLoader[Any]:
    return DataLoader(list(batches), batch_size=None)  # type: ignore[arg-type]


@pytest.mark.parametrize("lengths", [((10, 10), (1, 2)), ((3,), (7, 9))])
def test_accumulated_batches_weigh_every_label_the_same(
    tiny_backbone: TinyBackbone, tmp_path: Path, lengths: tuple[tuple[int, ...], ...]
) -> None:
    batches = [batch_of(*learnt, seed=number) for number, learnt in enumerate(lengths)]
    once = built(KeepsGradients, tiny_backbone("gpt2"), **NO_DROPOUT)
    trainer(tmp_path, max_epochs=1).fit(once, loader(join(*batches)))
    twice = built(KeepsGradients, tiny_backbone("gpt2"), **NO_DROPOUT)
    trainer(tmp_path, max_epochs=1, accumulate_grad_batches=2).fit(twice, loader(*batches))
    assert len(once.seen) == len(twice.seen) == 1
    for name, gradient in once.seen[0].items():
        torch.testing.assert_close(twice.seen[0][name], gradient, rtol=1e-4, atol=1e-7, msg=name)


def test_the_gradient_of_a_step_is_that_of_the_mean_over_its_labels(
    tiny_backbone: TinyBackbone, tmp_path: Path
) -> None:
    batch = batch_of(10, 3)
    task = built(KeepsGradients, tiny_backbone("llama"), **NO_DROPOUT)
    trainer(tmp_path, max_epochs=1, gradient_clip_val=None).fit(task, loader(batch, batch))
    plain = built(CausalLanguageModelingTask, tiny_backbone("llama"), **NO_DROPOUT)
    logits = plain.transformers_model(input_ids=batch["input_ids"]).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten()).backward()
    for name, gradient in gradients(plain).items():
        torch.testing.assert_close(task.seen[0][name], gradient, rtol=1e-4, atol=1e-7, msg=name)
    assert len(task.seen) == 2


def test_clipping_sees_the_gradient_of_the_mean(tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    task = built(KeepsGradients, tiny_backbone("llama"), **NO_DROPOUT)
    norms: list[float] = []
    original = task.configure_gradient_clipping

    def spy(optimizer: Optimizer, *args: Any, **kwargs: Any) -> None:
        norms.append(float(torch.stack([g.norm() for g in gradients(task).values()]).norm()))
        original(optimizer, *args, **kwargs)

    task.configure_gradient_clipping = spy
    trainer(tmp_path, max_epochs=1, gradient_clip_val=1e-3).fit(task, loader(batch_of(10, 3)))
    expected = float(torch.stack([gradient.norm() for gradient in task.seen[0].values()]).norm())
    assert norms == pytest.approx([expected])
    assert float(torch.stack([g.norm() for g in gradients(task).values()]).norm()) == pytest.approx(1e-3, rel=1e-3)


def test_norms_in_one_function_leave_loss_and_gradients_as_they_are(tiny_backbone: TinyBackbone) -> None:
    task = built(CausalLanguageModelingTask, tiny_backbone("llama"), **NO_DROPOUT)
    norms = [module for module in task.modules() if hasattr(module, SWITCHED)]
    assert len(norms) == 2 * task.transformers_model.config.num_hidden_layers + 1

    def results() -> dict[str, Tensor]:
        loss = task.next_token.loss(batch_of(10, 3))[0]
        loss.backward()
        found = {"loss": loss.detach(), **gradients(task)}
        task.zero_grad()
        return found

    ours = results()
    for norm in norms:
        norm.__class__ = type(norm).__bases__[0]
    for name, value in results().items():
        assert float((ours[name] - value).norm()) <= 1e-6 * float(value.norm()), name


@pytest.mark.parametrize("command", ["validate", "test"])
def test_metrics_are_means_over_labels_not_over_batches(
    tiny_backbone: TinyBackbone, tmp_path: Path, command: str
) -> None:
    batches = [batch_of(10, 9, 10), batch_of(1, seed=1), batch_of(4, 4, seed=2)]
    task = built(CausalLanguageModelingTask, tiny_backbone("opt"), lora=None)
    model = AutoModelForCausalLM.from_pretrained(tiny_backbone("opt"), dtype=torch.float32).eval()
    losses, hits = [], []
    for batch in batches:
        with torch.no_grad():
            logits = model(batch["input_ids"]).logits.double().numpy()
        learnt = batch["labels"].numpy() != IGNORED
        chosen, targets = logits[learnt], batch["labels"].numpy()[learnt]
        losses += list(np.log(np.exp(chosen).sum(axis=1)) - chosen[np.arange(len(targets)), targets])
        hits += list(chosen.argmax(axis=1) == targets)
    run = getattr(trainer(tmp_path), command)
    metrics = run(task, loader(*batches), verbose=False)[0]
    split = "val" if command == "validate" else "test"
    assert metrics[f"{split}/loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert metrics[f"{split}/perplexity"] == pytest.approx(math.exp(np.mean(losses)), rel=1e-5)
    assert metrics[f"{split}/next_token_accuracy"] == pytest.approx(np.mean(hits), abs=1e-6)
    again = run(task, loader(*batches), verbose=False)[0]
    assert again == pytest.approx(metrics)  # nothing is left over from the first time


def causal_loss(task: CausalLanguageModelingTask) -> Tensor:
    return task.next_token.loss(batch_of(10, 6))[0]


def packed_loss(task: CausalLanguageModelingTask) -> Tensor:
    batch = batch_of(10, 6)
    batch["position_ids"] = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 0, 1, 2]] * 2)
    del batch["attention_mask"]
    return task.next_token.loss(batch)[0]


@pytest.mark.parametrize("loss_of", [causal_loss, packed_loss])
@pytest.mark.parametrize("lora", [LoraSettings(r=4, lora_dropout=0.3), None])
@pytest.mark.parametrize("family", DECODERS)
def test_checkpointed_layers_give_the_same_gradients_with_dropout_on(
    tiny_backbone: TinyBackbone, family: str, lora: LoraSettings | None, loss_of: Callable[[Any], Tensor]
) -> None:
    found: dict[bool, dict[str, Tensor]] = {}
    runs: dict[bool, int] = {}
    for checkpointing in (False, True):
        task = built(
            CausalLanguageModelingTask,
            tiny_backbone(family),
            lora=lora,
            base_dropout=0.2,
            gradient_checkpointing=checkpointing,
        )
        loss_of(task)  # looks at the architecture
        calls: list[str] = []
        layer = next(module for name, module in task.named_modules() if name.endswith(("mlp", "fc1")))
        layer.register_forward_pre_hook(lambda *_, calls=calls: calls.append("call"))
        torch.manual_seed(1)
        loss_of(task).backward()
        found[checkpointing], runs[checkpointing] = gradients(task), len(calls)
    assert runs == {False: 1, True: 2}  # a checkpointed layer runs again
    assert found[False].keys() == found[True].keys()
    assert any("lora_A" in name for name in found[True]) == (lora is not None)
    for name, gradient in found[False].items():
        torch.testing.assert_close(found[True][name], gradient, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_classifiers_have_gradient_checkpointing_too(tiny_backbone: TinyBackbone, family: str) -> None:
    found = []
    for checkpointing in (False, True):
        task = built(
            SequenceClassificationTask,
            tiny_backbone(family),
            base_dropout=0.2,
            gradient_checkpointing=checkpointing,
            label_space=LabelSpace(["a", "b"], None, False, {}),
        )
        torch.manual_seed(1)
        batch = batch_of(10, 10)
        task({"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}).sum().backward()
        found.append(gradients(task))
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-5, atol=1e-6, msg=name)


def test_an_architecture_without_checkpointing_is_refused(
    tiny_backbone: TinyBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GPT2LMHeadModel, "supports_gradient_checkpointing", False)
    with pytest.raises(
        ConfigurationError, match=r"model\.gradient_checkpointing is true, but GPT2LMHeadModel does not support it"
    ):
        built(CausalLanguageModelingTask, tiny_backbone("gpt2"), gradient_checkpointing=True)


def prompts(*rows: list[int]) -> Batch:
    longest = max(len(row) for row in rows)
    return {
        "input_ids": torch.tensor([row + [1] * (longest - len(row)) for row in rows]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows]),
        "index": torch.arange(len(rows)),
    }


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt"])
def test_greedy_completions_are_the_most_likely_tokens_whatever_the_neighbours(
    tiny_backbone: TinyBackbone, family: str
) -> None:
    task = built(CausalLanguageModelingTask, tiny_backbone(family), generation=GenerationSettings(max_new_tokens=5))
    rows = [[5, 6, 7, 8], [9], [20, 21]]
    completions = task.complete(prompts(*rows))
    model = task.transformers_model.eval()
    for row, completion in zip(rows, completions, strict=True):
        tokens = list(row)
        for _ in range(5):
            with torch.no_grad():
                tokens.append(int(model(torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax()))
            if tokens[-1] == task.tokenizer.eos_token_id:
                break
        assert completion == task.tokenizer.decode(tokens[len(row) :], skip_special_tokens=True)


@pytest.mark.parametrize("family", ["rwkv", "mamba", "recurrent_gemma", "lfm2, short convolution", "bloom, alibi"])
def test_completions_do_not_depend_on_the_neighbours_where_states_run_through_a_row(
    tiny_backbone: TinyBackbone, tmp_path: Path, family: str
) -> None:
    causal_model(family, scale=3).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_backbone("gpt2")).save_pretrained(tmp_path)
    settings = GenerationSettings(max_new_tokens=6)
    task = built(CausalLanguageModelingTask, tmp_path, lora=None, generation=settings)
    rows = [[5, 6, 7, 8, 11, 12, 9], [9, 8], [20, 21, 22], [30, 7]]
    together = task.complete(prompts(*rows))
    assert together == [task.complete(prompts(row))[0] for row in rows]
    assert task.next_token.reads_padding is task._reads_padding is (family in {"rwkv", "recurrent_gemma"})


def test_draws_are_the_same_for_the_same_seed_and_generating_keeps_the_mode(tiny_backbone: TinyBackbone) -> None:
    settings = GenerationSettings(max_new_tokens=20, do_sample=True, temperature=1.5)
    task = built(CausalLanguageModelingTask, tiny_backbone("gpt2"), generation=settings)
    texts = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        texts.append(task.complete(prompts([5, 6], [7])))
    assert texts[0] == texts[1] != texts[2]
    assert task.transformers_model.training


def test_a_prompt_that_leaves_no_room_is_named(tiny_backbone: TinyBackbone) -> None:
    task = CausalLanguageModelingTask(str(tiny_backbone("gpt2")), generation=GenerationSettings(max_new_tokens=35))
    task.check_lengths([5, 5], ["a.txt, line 1", "a.txt, line 2"])
    with pytest.raises(
        ConfigurationError,
        match=r"^a\.txt, line 2: the prompt has 6 tokens, which with .*max_new_tokens 35 exceeds the model's 40",
    ):
        task.check_lengths([5, 6], ["a.txt, line 1", "a.txt, line 2"])
    assert task.network is None


@pytest.mark.parametrize(
    ("values", "message"),
    [({"max_new_tokens": 0}, "at least 1"), ({"temperature": 0.0}, "above 0"), ({"top_p": 1.5}, r"\(0, 1\]")],
)
def test_generation_settings_out_of_range_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        GenerationSettings(**values)


def test_rows_come_back_in_the_order_of_the_file(tiny_backbone: TinyBackbone) -> None:
    task = CausalLanguageModelingTask(str(tiny_backbone("gpt2")), optimization=OptimizationSettings())
    batches = [
        {"index": torch.tensor([2, 0]), "completion": ["c", "a"]},
        {"index": torch.tensor([1]), "completion": ["b"]},
    ]
    rows = task.prediction_rows(batches, [{"prompt": f"p{number}"} for number in range(3)])
    assert rows == [
        {"prompt": "p0", "completion": "a"},
        {"prompt": "p1", "completion": "b"},
        {"prompt": "p2", "completion": "c"},
    ]
