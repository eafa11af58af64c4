"""In which dtype the runs of a precision keep what is not quantized: measurements open them all in float32."""

import torch
from torch import Tensor

from lora_lightning.diagnosis.finished_runs import FinishedRun
from lora_lightning.planning.precisions import HALVES, SPELLINGS


def weights_dtype(run: FinishedRun) -> torch.dtype:
    """The dtype in which a run trained its model, adapters and head included.

    Args:
        run: The run.
    """
    precision = str(run.record.flat_settings.get("trainer.precision"))
    return HALVES.get(SPELLINGS.get(precision, precision), torch.float32)


def dtype_name(dtype: torch.dtype) -> str:
    """Such as `bfloat16`."""
    return str(dtype).removeprefix("torch.")


def bytes_in(tensor: Tensor, dtype: torch.dtype) -> int:
    """The memory of a tensor that is not quantized, in the dtype of its run.

    Args:
        tensor: As a measurement has it; integers stay as they are.
        dtype: From `weights_dtype`.

    Returns:
        Bytes.
    """
    return tensor.numel() * dtype.itemsize if tensor.is_floating_point() else tensor.nbytes
