"""The quantization from which weights of a GGUF file come is named, and nothing is said of others."""

from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter, quants

from lora_lightning.backbones.gguf_origin import origin_of_weights
from lora_lightning.errors import BackboneError


def save(folder: Path, *types: GGMLQuantizationType) -> Path:
    writer = GGUFWriter(str(folder / "model.gguf"), "llama")
    writer.add_file_type(3)  # what the header says of the most frequent type
    weight = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    for number, kind in enumerate(types):
        writer.add_tensor(f"blk.{number}.attn_q.weight", quants.quantize(weight, kind), raw_dtype=kind)
    writer.add_tensor("output_norm.weight", np.ones(64, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder


def test_types_are_named_by_their_share_of_the_parameters(tmp_path: Path) -> None:
    kinds = [GGMLQuantizationType.Q8_0, *[GGMLQuantizationType.Q4_1] * 3]
    assert origin_of_weights(str(save(tmp_path, *kinds))) == "Q4_1 (75 %) and Q8_0 (25 %)"


def test_floating_weights_and_other_folders_have_no_such_origin(tmp_path: Path) -> None:
    assert origin_of_weights(str(save(tmp_path, GGMLQuantizationType.F16))) == ""
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_text("")
    assert origin_of_weights(str(tmp_path)) == ""
    with pytest.raises(BackboneError):
        origin_of_weights(str(tmp_path / "gone"))
