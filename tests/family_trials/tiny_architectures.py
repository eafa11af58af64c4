"""Tiny random models of any architecture that transformers has, saved as pretrained checkpoints are; no hub."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE, WordLevel
from tokenizers.pre_tokenizers import ByteLevel, Whitespace
from tokenizers.processors import TemplateProcessing
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.pytorch_utils import Conv1D

HIDDEN = 32
VOCABULARY = 200
SCALE = 4  # of transformers' initial weights, with which a token has almost no effect on the others
PAIR = "[CLS] $A [SEP] [SEP] $B:1 [SEP]:1"  # as RoBERTa's; Longformer's question answerer counts the separators
SPECIAL = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]

# Whatever of these a configuration has, its text part included, is set.
SIZES: dict[str, int] = {
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), VOCABULARY),
    **dict.fromkeys(
        (
            "hidden_size",
            "d_model",
            "n_embd",
            "dim",
            "emb_dim",
            "lru_width",
            "word_embed_proj_dim",
            "attention_hidden_size",
        ),
        HIDDEN,
    ),
    **dict.fromkeys(("hidden_size_per_layer_input", "embedding_size", "d_embed", "altup_lane_size"), 16),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers"), 2),
    **dict.fromkeys(("encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "linear_num_key_heads", "swa_num_key_value_heads"), 2),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff", "d_inner", "hidden_dim", "block_ff_dim"), 64),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim", "ffn_hidden_size", "dense_intermediate_size"), 64),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size"), 32),
    **dict.fromkeys(("intermediate_size_mlp", "expert_ffn_hidden_size", "moe_shared_expert_intermediate_size"), 32),
    **dict.fromkeys(("head_dim", "global_head_dim", "d_kv", "d_head", "kv_channels", "attention_head_dim"), 8),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "swa_head_dim"), 8),
    "attention_hidden_size": HIDDEN,
    "linear_num_value_heads": 4,
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "context_length"), 128),
    **dict.fromkeys(("original_max_position_embeddings", "max_sequence_length"), 64),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk", "top_k_experts"), 2),
    **dict.fromkeys(("n_group", "topk_group", "num_expert_group", "topk_groups", "n_shared_experts"), 1),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "qk_head_dim"), 8),
    **dict.fromkeys(("state_size", "mamba_d_state", "ssm_state_size", "mamba_d_head", "mamba_head_dim"), 8),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "n_mamba_heads"), 8),
    **dict.fromkeys(("mamba_n_groups", "n_groups", "mamba_ngroups"), 1),
    **dict.fromkeys(("mamba_chunk_size", "chunk_size"), 8),
    **dict.fromkeys(("mamba_d_ssm",), 64),
    **dict.fromkeys(("sliding_window", "window_size", "attention_window_size", "attention_chunk_size"), 16),
    **dict.fromkeys(("first_k_dense_replace", "moe_layer_start_index"), 1),
    **dict.fromkeys(("layers_block_type_period", "attn_layer_period", "expert_layer_period"), 2),
    **dict.fromkeys(("attn_layer_offset", "expert_layer_offset"), 1),
    **dict.fromkeys(("type_vocab_size",), 2),
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "cls_token_id": 1,
    "sep_token_id": 2,
    "decoder_start_token_id": 0,
    "mask_token_id": 4,
}

# What the sizes alone do not say.
EXTRA: dict[str, dict[str, Any]] = {
    "deepseek_v2": {"num_experts_per_tok": 2, "topk_method": "greedy", "n_group": 1, "topk_group": 1},
    "bamba": {"attn_layer_indices": [1]},
    "codegen": {"rotary_dim": 4},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1},
    "esm": {"vocab_size": VOCABULARY, "pad_token_id": 0},
    "funnel": {"block_sizes": [1, 1, 1], "num_decoder_layers": 1},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {"layers_block_type": ["linear_attention", "full_attention"]},
    "gptj": {"rotary_dim": 4},
    "lilt": {"hidden_size": 48, "max_2d_position_embeddings": 16},  # a sixth of the size for each side of a box
    "longformer": {"attention_window": [8, 8]},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "nemotron": {"num_key_value_heads": 2},
    **{name: {"decoder_start_token_id": 0} for name in ("mt5", "t5", "umt5")},
    "recurrent_gemma": {"num_hidden_layers": 3},  # two recurrent layers to one of attention
    "reformer": {"axial_pos_embds_dim": [16, 16], "axial_pos_shape": [8, 16]},
    "squeezebert": {"embedding_size": HIDDEN},
    "xmod": {"default_language": "en_XX"},
}


def tiny_config(model_type: str) -> PretrainedConfig:
    """The architecture's own settings, with small sizes and one layer of each kind that it names.

    Args:
        model_type: transformers' name of the architecture.

    Returns:
        The configuration.
    """
    defaults = AutoConfig.for_model(model_type)
    return AutoConfig.for_model(model_type, **{**_sizes_of(defaults), **EXTRA.get(model_type, {})})


def _sizes_of(config: PretrainedConfig) -> dict[str, Any]:
    known = {**config.to_dict(), **{new: getattr(config, new, None) for new in config.attribute_map}}
    sizes: dict[str, Any] = {name: size for name, size in SIZES.items() if isinstance(known.get(name), int)}
    sizes |= {name: SIZES[name] for name in SIZES if name.endswith("_token_id") and name in known}
    heads, groups = config.to_dict().get("num_attention_heads"), config.to_dict().get("num_key_value_heads")
    if heads == groups and "num_key_value_heads" in sizes:
        sizes["num_key_value_heads"] = 4
    if groups == 1:
        sizes["num_key_value_heads"] = 1
    for name in ("layer_types", "layers_block_type", "mlp_layer_types"):
        kinds = list(dict.fromkeys(known.get(name) or ()))
        derived = isinstance(getattr(type(config), config.attribute_map.get(name, name), None), property)
        if kinds and not derived:
            sizes[name] = kinds if len(kinds) > 1 else kinds * 2
    depth = max((len(value) for value in sizes.values() if isinstance(value, list)), default=2)
    for name in [name for name, value in sizes.items() if isinstance(value, list)]:
        sizes[name] = (sizes[name] * depth)[:depth]
    for name in ("num_hidden_layers", "n_layer", "num_layers", "n_layers"):
        if name in sizes:
            sizes[name] = depth
    return sizes


def save_tiny_model(model_type: str, folder: Path) -> Path:
    """Saves a tiny random model as it is pretrained, without a task's head, and a tokenizer of words `w0`, `w1`, ...

    Args:
        model_type: transformers' name of the architecture.
        folder: Where to; created if it does not exist.

    Returns:
        The folder.
    """
    config = tiny_config(model_type)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = _pretraining_class(config).from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.Linear | Conv1D):
                layer.weight.mul_(SCALE)
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def _pretraining_class(config: PretrainedConfig) -> Any:
    for auto_class in (AutoModelForMaskedLM, AutoModelForSeq2SeqLM, AutoModelForCausalLM):
        if type(config) in auto_class._model_mapping:
            return auto_class
    return AutoModel


def save_tokenizer(folder: Path) -> None:
    """Saves a tokenizer beside a model: a token a word, or a character if transformers insists on bytes for the model.

    Args:
        folder: The model's.
    """
    words = [f"w{number}" for number in range(VOCABULARY - len(SPECIAL))]
    backend = Tokenizer(WordLevel({word: place for place, word in enumerate(SPECIAL + words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = Whitespace()
    _save(backend, folder)
    if len(AutoTokenizer.from_pretrained(folder)("w1 w2 w3", add_special_tokens=False)["input_ids"]) != 3:
        characters = [*SPECIAL, "\u0120", *"w0123456789"]
        backend = Tokenizer(BPE({word: place for place, word in enumerate(characters)}, merges=[]))
        backend.pre_tokenizer = ByteLevel(add_prefix_space=False)
        _save(backend, folder)


def _save(backend: Tokenizer, folder: Path) -> None:
    backend.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair=PAIR, special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        bos_token="[CLS]",
        eos_token="[SEP]",
    ).save_pretrained(folder)
