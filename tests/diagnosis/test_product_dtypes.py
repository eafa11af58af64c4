"""That the precisions multiplied in different dtypes is said, and only then."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lora_lightning.diagnosis import product_dtypes
from lora_lightning.diagnosis.product_dtypes import note_on_products

bnb = pytest.importorskip("bitsandbytes")


def note(trainer: str, compute_dtype: str | None, bits: int = 4) -> str:
    quantization = {"bits": bits, "compute_dtype": compute_dtype}
    record = SimpleNamespace(
        flat_settings={"trainer.precision": trainer},
        settings={"model": {"init_args": {"quantization": quantization}}},
    )
    full: Any = SimpleNamespace(precision="LoRA", record=record)
    quantized: Any = SimpleNamespace(precision="NF4", record=record)
    return note_on_products(full, quantized)


@pytest.mark.parametrize(
    ("trainer", "compute_dtype"),
    [
        ("32-true", "float32"),
        ("bf16-mixed", "auto"),
        ("bf16-mixed", "float32"),
        ("16-mixed", "bfloat16"),
        ("bf16-true", "bfloat16"),
    ],
)
def test_equal_dtypes_need_no_note(trainer: str, compute_dtype: str) -> None:
    assert note(trainer, compute_dtype) == ""


def test_autocast_casts_what_4_bit_layers_multiply() -> None:
    """Whatever their own dtype: products of a float32 layer round as those in bfloat16 do."""
    torch.manual_seed(0)
    layer = bnb.nn.Linear4bit(64, 32, bias=False, compute_dtype=torch.float32, quant_type="nf4")
    layer.weight = bnb.nn.Params4bit(torch.randn(32, 64), requires_grad=False, quant_type="nf4")
    layer.to("cpu")
    x = torch.randn(8, 64, requires_grad=True)
    exact = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = layer(x)
    difference = float((found.float() - exact).detach().norm() / exact.detach().norm())
    assert 1e-3 < difference < 1e-2


def test_other_dtypes_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    found = note("32-true", "bfloat16")
    assert found.startswith(
        "Runs of LoRA were trained and tested with products in float32, those of NF4 with products of"
    )
    assert "4-bit weights in bfloat16, so verdicts on quality, adapters and costs compare this too" in found
    assert "measured with products in float32 on both sides" in found
    assert "with products in bfloat16, those of NF4" in note("bf16-true", "float32")
    monkeypatch.setattr(product_dtypes, "compute_dtype_on", lambda *_: torch.bfloat16)
    assert "suited the device of the run (compute_dtype: auto; here bfloat16)" in note("32-true", "auto")
    assert "multiplies 8-bit integers, which rounds the inputs of layers too" in note("32-true", "auto", bits=8)
