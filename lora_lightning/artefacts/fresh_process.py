"""Loads a model folder in a process of its own, with transformers alone, and writes down what it computes.

It is run as a script: `python -P fresh_process.py REQUEST.json`. Nothing of this package may be imported here; PEFT and
this package are blocked, so that a folder that needs them fails.
"""

import json
import sys
from pathlib import Path
from typing import Any


def load_and_run(request: dict[str, Any]) -> dict[str, Any]:
    """Loads a folder, runs its model, saves it, loads that and runs it again.

    Args:
        request: `folder`, `again` (where to save), `auto_class`, `device`, `threads`, `inputs` and `outputs` (files of
            tensors) and `text` (to tokenize; `null` without a tokenizer).

    Returns:
        `missing`, names of weights that were newly initialized; `labels`; `tokens`; `modules`, the packages that
        should not be there; and `saved_again`, whether transformers could save the model.
    """
    import torch  # noqa: PLC0415  # after the packages are blocked
    import transformers  # noqa: PLC0415
    from safetensors.torch import load_file, save_file  # noqa: PLC0415

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(request["threads"])
    inputs = load_file(request["inputs"])
    auto_class = getattr(transformers, request["auto_class"])
    outputs: dict[str, torch.Tensor] = {}
    missing: list[str] = []
    labels: dict[str, str] = {}
    saved_again = True
    for place, source in (("first", request["folder"]), ("again", request["again"])):
        if not saved_again:
            break
        model, info = auto_class.from_pretrained(source, output_loading_info=True, trust_remote_code=False)
        is_quantized = getattr(model, "is_quantized", False)
        model = (model if is_quantized else model.to(request["device"])).eval()
        missing += sorted({*info["missing_keys"], *(str(key[0]) for key in info["mismatched_keys"])})
        labels = {str(number): name for number, name in (model.config.id2label or {}).items()}
        if place == "first":
            saved_again = _save_again(model, request["again"])
        for number in range(request["batches"]):
            prefix = f"{number}."
            batch = {key[len(prefix) :]: value for key, value in inputs.items() if key.startswith(prefix)}
            with torch.no_grad():
                output = model(**{key: value.to(model.device) for key, value in batch.items()})
            for key in ("logits", "start_logits", "end_logits"):
                if key in output:
                    outputs[f"{place}.{number}.{key}"] = output[key].float().cpu().contiguous()
        del model  # before the next one takes as much memory
    save_file(outputs, request["outputs"])
    tokens = None
    if request["text"] is not None:
        tokenizer = transformers.AutoTokenizer.from_pretrained(request["folder"], trust_remote_code=False)
        tokens = tokenizer(request["text"])["input_ids"]
    unwanted = [name for name in ("peft", "lora_lightning") if sys.modules.get(name) is not None]
    return {"missing": missing, "labels": labels, "tokens": tokens, "modules": unwanted, "saved_again": saved_again}


def _save_again(model: Any, folder: str) -> bool:
    """Saves a loaded model; transformers (5.24) cannot save one that was loaded in 4 bits."""
    try:
        model.save_pretrained(folder)
    except NotImplementedError:
        if not getattr(model, "is_quantized", False):
            raise
        return False
    return True


if __name__ == "__main__":
    for blocked in ("peft", "lora_lightning"):
        sys.modules[blocked] = None  # type: ignore[assignment]  # makes `import` fail
    content = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    Path(content["result"]).write_text(json.dumps(load_and_run(content)), encoding="utf-8")
