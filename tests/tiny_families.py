"""Tiny random causal language models of many architectures, for what an architecture does with its input."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

_SIZES: dict[str, Any] = {
    "vocab_size": 160,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GROUPED = {**_SIZES, "num_key_value_heads": 2}
_GPT = {"vocab_size": 160, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
_MAMBA = {"vocab_size": 160, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}
_FALCON = {"vocab_size": 160, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_LINEAR = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
_ALTERNATING = {**_GROUPED, "head_dim": 8, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}

CAUSAL_FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", _GROUPED),
    "mistral, sliding window": ("mistral", {**_GROUPED, "sliding_window": 4}),
    "gemma3, sliding window in every other layer": ("gemma3_text", _ALTERNATING),
    "qwen3_moe": (
        "qwen3_moe",
        {**_GROUPED, "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    ),
    "gpt_neo, local attention": (
        "gpt_neo",
        {
            "vocab_size": 160,
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 4,
            "max_position_embeddings": 64,
        },
    ),
    "falcon, alibi": ("falcon", {**_FALCON, "alibi": True}),
    "opt": ("opt", {**_SIZES, "word_embed_proj_dim": 32, "ffn_dim": 64}),
    "xglm": (
        "xglm",
        {"vocab_size": 160, "d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 64, "pad_token_id": 0},
    ),
    "mpt, alibi": ("mpt", {"vocab_size": 160, "d_model": 32, "n_heads": 4, "n_layers": 2, "expansion_ratio": 2}),
    "gpt_oss": ("gpt_oss", {**_ALTERNATING, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "openai-gpt": ("openai-gpt", _GPT),
    "bloom, alibi": ("bloom", {"vocab_size": 160, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "mamba": ("mamba", _MAMBA),
    "mamba2": ("mamba2", {**_MAMBA, "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 8}),
    "jamba": (
        "jamba",
        {
            **_GROUPED,
            "mamba_d_state": 8,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "num_experts": 2,
        },
    ),
    "lfm2, short convolution": (
        "lfm2",
        {**_GROUPED, "block_ff_dim": 64, "layer_types": ["conv", "full_attention"]},
    ),
    "recurrent_gemma": (
        "recurrent_gemma",
        {
            **_SIZES,
            "num_hidden_layers": 3,
            "lru_width": 32,
            "attention_window_size": 4,
            "head_dim": 8,
            "num_key_value_heads": 1,
        },
    ),
    "rwkv": ("rwkv", {"vocab_size": 160, "hidden_size": 32, "num_hidden_layers": 2, "context_length": 64}),
    "qwen3_5, linear attention": (
        "qwen3_5_text",
        {**_GROUPED, "head_dim": 8, **_LINEAR, "layer_types": ["linear_attention", "full_attention"]},
    ),
    "xlnet, both directions": (
        "xlnet",
        {"vocab_size": 160, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64},
    ),
}


def causal_config(family: str, **changes: Any) -> Any:
    """The architecture of one of `CAUSAL_FAMILIES`."""
    model_type, sizes = CAUSAL_FAMILIES[family]
    return AutoConfig.for_model(model_type, **{**sizes, **changes})


def causal_model(family: str, scale: float = 1.0) -> PreTrainedModel:
    """A random model in evaluation mode, its weight matrices `scale` times as large as transformers makes them."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(causal_config(family), dtype=torch.float32)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(scale if weight.dim() > 1 else 1)
    return model.eval()
