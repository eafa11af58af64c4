"""What a GGUF file holds: from which quantization its weights come, and what it takes to dequantize them.

Transformers dequantizes them all, and says nothing about it.
"""

from collections import Counter
from functools import lru_cache
from pathlib import Path

from lora_lightning.backbones.source import gguf_file_of, resolve_backbone

FLOATING = frozenset({"F64", "F32", "F16", "BF16"})
LEAST_SHARE = 0.01


def origin_of_weights(backbone: str) -> str:
    """Names the types in which a GGUF file holds the weights of a backbone, the most frequent one first.

    The tensors' own types count, and not the header's `general.file_type`, which names one of them.

    Args:
        backbone: As in a config.

    Returns:
        Such as `Q4_1 (79 %) and Q8_0 (21 %)`, shares of the parameters; empty for other files, and for a GGUF file
        whose weights are not quantized.

    Raises:
        BackboneError: If the backbone is not there.
    """
    source = resolve_backbone(backbone)
    if (file := gguf_file_of(source)) is None:
        return ""
    from gguf import GGUFReader  # noqa: PLC0415  # an optional package

    sizes: Counter[str] = Counter()
    for tensor in GGUFReader(str(Path(source) / file)).tensors:
        sizes[tensor.tensor_type.name] += int(tensor.n_elements)
    kept = {name: size / sizes.total() for name, size in sizes.most_common() if size >= LEAST_SHARE * sizes.total()}
    return (
        "" if kept.keys() <= FLOATING else " and ".join(f"{name} ({100 * share:.0f} %)" for name, share in kept.items())
    )


def memory_to_load(backbone: str) -> int:
    """What dequantizing a GGUF file takes at most, in bytes, before a quantized base is made from the result.

    Args:
        backbone: As in a config.

    Returns:
        All weights and once more the largest tensor, in float32, and the file, which is mapped into memory; 0 for other
        files, which are read tensor by tensor.

    Raises:
        BackboneError: If the backbone is not there.
    """
    source = resolve_backbone(backbone)
    if (file := gguf_file_of(source)) is None:
        return 0
    path = Path(source) / file
    return _memory_of(path, path.stat().st_mtime_ns)


@lru_cache  # looking into a file takes seconds, and a plan asks once for each precision
def _memory_of(path: Path, changed: int) -> int:
    from gguf import GGUFReader  # noqa: PLC0415  # an optional package

    del changed
    sizes = [4 * int(tensor.n_elements) for tensor in GGUFReader(str(path)).tensors]
    return sum(sizes) + max(sizes) + path.stat().st_size
