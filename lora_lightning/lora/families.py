"""What is known of each architecture: which layers are attention and which MLP, and what a classifier may leave out.

A new family is one entry in `FAMILIES`, keyed by its `config.model_type`. `all-linear` needs no entry.
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Family:
    """How an architecture names its layers; each entry is the end of a dotted module name, `*` any part of one.

    Attributes:
        query_value: Query and value projections; a fused query-key-value layer counts as both.
        attention_rest: Key and output projections, and whatever else the attention has.
        mlp: The feed-forward network; in a mixture of experts those experts that every token passes.
        first_token: For a classifier that reads the first token's hidden state alone: the list of layers, and the
            module of the last layer from which on every token is computed by itself. `None` for other classifiers.
        positions_follow_padding: Whether positions are counted from the one after the padding token's id, so that a
            model with 514 positions takes 512 tokens.
        counts_separators: Whether question answering fails unless a row has exactly the separators that the tokenizer
            puts between the texts; one inside a text is then read as ordinary characters.
        needs_decoder_start: Whether the decoder cannot run unless `config.json` has a `decoder_start_token_id`, which
            transformers does not provide a default for.
    """

    query_value: tuple[str, ...]
    attention_rest: tuple[str, ...]
    mlp: tuple[str, ...]
    first_token: tuple[str, str] | None = None
    positions_follow_padding: bool = False
    counts_separators: bool = False
    needs_decoder_start: bool = False


_BERT_WITHOUT_CLS = Family(
    ("attention.self.query", "attention.self.value"),
    ("attention.self.key", "attention.output.dense"),
    ("intermediate.dense", "layer.*.output.dense"),
)
_BERT = replace(_BERT_WITHOUT_CLS, first_token=("encoder.layer", "attention.output"))
_ROBERTA = replace(_BERT, positions_follow_padding=True)
_LONGFORMER = Family(
    ("self.query", "self.value", "self.query_global", "self.value_global"),
    ("self.key", "self.key_global", "attention.output.dense"),
    ("intermediate.dense", "layer.*.output.dense"),
    positions_follow_padding=True,
    counts_separators=True,
)
_XLM = Family(("q_lin", "v_lin"), ("k_lin", "out_lin"), ("lin1", "lin2"))
_LLAMA = Family(
    ("self_attn.q_proj", "self_attn.v_proj"),
    ("self_attn.k_proj", "self_attn.o_proj"),
    ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
)
_WITHOUT_GATE = replace(_LLAMA, mlp=("mlp.up_proj", "mlp.down_proj"))
_FUSED_MLP = replace(_LLAMA, mlp=("mlp.gate_up_proj", "mlp.down_proj"))
_ROUTED = replace(_LLAMA, mlp=())
_ONE_SHARED = replace(
    _LLAMA,
    mlp=("mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj", "mlp.shared_expert.down_proj"),
)
_DEEPSEEK = Family(
    # Query and value are made in two steps; small models have a query of one step.
    ("self_attn.q_proj", "self_attn.q_a_proj", "self_attn.q_b_proj", "kv_a_proj_with_mqa", "self_attn.kv_b_proj"),
    ("self_attn.o_proj",),
    (
        *_LLAMA.mlp,
        "mlp.shared_experts.gate_proj",
        "mlp.shared_experts.up_proj",
        "mlp.shared_experts.down_proj",
    ),
)
_DENSE_AND_SHARED = replace(_LLAMA, mlp=_DEEPSEEK.mlp)
_LINEAR_ATTENTION = Family(
    (*_LLAMA.query_value, "linear_attn.in_proj_qkvz", "linear_attn.in_proj_qkv"),
    (
        *_LLAMA.attention_rest,
        "linear_attn.in_proj_z",
        "linear_attn.in_proj_a",
        "linear_attn.in_proj_b",
        "linear_attn.in_proj_ba",
        "linear_attn.out_proj",
    ),
    (*_LLAMA.mlp, *_ONE_SHARED.mlp),
)
_HYBRID = replace(  # of attention and Mamba: the presets leave the Mamba layers out
    _LLAMA, mlp=("feed_forward.gate_proj", "feed_forward.up_proj", "feed_forward.down_proj")
)
_WITHOUT_ATTENTION = Family((), (), ())  # or whose attention holds no linear layers
_BLOOM = Family(
    ("self_attention.query_key_value",), ("self_attention.dense",), ("mlp.dense_h_to_4h", "mlp.dense_4h_to_h")
)
_GPT2 = Family(("attn.c_attn",), ("attn.c_proj",), ("mlp.c_fc", "mlp.c_proj"))
_BART = Family(
    ("self_attn.q_proj", "self_attn.v_proj", "encoder_attn.q_proj", "encoder_attn.v_proj"),
    ("self_attn.k_proj", "self_attn.out_proj", "encoder_attn.k_proj", "encoder_attn.out_proj"),
    ("fc1", "fc2"),
)
_T5 = Family(
    ("SelfAttention.q", "SelfAttention.v", "EncDecAttention.q", "EncDecAttention.v"),
    ("SelfAttention.k", "SelfAttention.o", "EncDecAttention.k", "EncDecAttention.o"),
    ("DenseReluDense.wi", "DenseReluDense.wi_0", "DenseReluDense.wi_1", "DenseReluDense.wo"),
    needs_decoder_start=True,
)

FAMILIES: dict[str, Family] = {
    # Encoders.
    "albert": Family(
        ("attention.query", "attention.value"),
        ("attention.key", "attention.dense"),
        ("ffn", "ffn_output"),
    ),
    "bert": _BERT,
    "big_bird": _BERT_WITHOUT_CLS,
    "camembert": _ROBERTA,
    "convbert": _BERT_WITHOUT_CLS,
    "data2vec-text": replace(_BERT_WITHOUT_CLS, positions_follow_padding=True),
    "deberta": Family(
        ("attention.self.in_proj",),
        ("attention.self.pos_proj", "attention.self.pos_q_proj", "attention.output.dense"),
        ("intermediate.dense", "layer.*.output.dense"),
        first_token=("encoder.layer", "attention.output"),
    ),
    "deberta-v2": Family(
        ("attention.self.query_proj", "attention.self.value_proj"),
        ("attention.self.key_proj", "attention.output.dense"),
        ("intermediate.dense", "layer.*.output.dense"),
        first_token=("encoder.layer", "attention.output"),
    ),
    "distilbert": Family(
        ("attention.q_lin", "attention.v_lin"),
        ("attention.k_lin", "attention.out_lin"),
        ("ffn.lin1", "ffn.lin2"),
        first_token=("transformer.layer", "sa_layer_norm"),
    ),
    "electra": _BERT,
    "ernie": _BERT_WITHOUT_CLS,
    "eurobert": _LLAMA,
    "flaubert": _XLM,
    "funnel": Family(
        ("attention.q_head", "attention.v_head"),
        ("attention.k_head", "attention.post_proj"),
        ("ffn.linear_1", "ffn.linear_2"),
    ),
    "ibert": replace(_WITHOUT_ATTENTION, positions_follow_padding=True),
    "longformer": _LONGFORMER,
    "megatron-bert": _BERT_WITHOUT_CLS,
    "modernbert": Family(("attn.Wqkv",), ("attn.Wo",), ("mlp.Wi", "mlp.Wo")),
    "mpnet": Family(
        ("attention.attn.q", "attention.attn.v"),
        ("attention.attn.k", "attention.attn.o"),
        ("intermediate.dense", "layer.*.output.dense"),
        first_token=("encoder.layer", "attention.LayerNorm"),
        positions_follow_padding=True,
    ),
    "nystromformer": _BERT_WITHOUT_CLS,
    "rembert": _BERT_WITHOUT_CLS,
    "roberta": _ROBERTA,
    "roberta-prelayernorm": replace(_BERT_WITHOUT_CLS, positions_follow_padding=True),
    "roformer": _BERT_WITHOUT_CLS,
    "xlm": _XLM,
    "xlm-roberta": _ROBERTA,
    "xlm-roberta-xl": replace(_BERT_WITHOUT_CLS, positions_follow_padding=True),
    "xmod": replace(_BERT_WITHOUT_CLS, positions_follow_padding=True),
    # Encoder-decoders.
    "bart": _BART,
    "mbart": _BART,
    "mt5": _T5,
    "plbart": _BART,
    "t5": _T5,
    "umt5": _T5,
    # Decoders.
    "apertus": _WITHOUT_GATE,
    "arcee": _WITHOUT_GATE,
    "bamba": _HYBRID,
    "bloom": _BLOOM,
    "cohere": _LLAMA,
    "cohere2": _LLAMA,
    "deepseek_v2": _DEEPSEEK,
    "deepseek_v3": _DEEPSEEK,
    "ernie4_5": _LLAMA,
    "ernie4_5_moe": _DENSE_AND_SHARED,
    "exaone4": _LLAMA,
    "falcon": _BLOOM,
    "falcon_h1": _HYBRID,
    "falcon_mamba": _WITHOUT_ATTENTION,
    "gemma": _LLAMA,
    "gemma2": _LLAMA,
    "gemma3_text": _LLAMA,
    "glm": _FUSED_MLP,
    "glm4": _FUSED_MLP,
    "glm4_moe": _DENSE_AND_SHARED,
    "gpt2": _GPT2,
    "gpt_bigcode": _GPT2,
    "gpt_neo": Family(
        ("attn.attention.q_proj", "attn.attention.v_proj"),
        ("attn.attention.k_proj", "attn.attention.out_proj"),
        ("mlp.c_fc", "mlp.c_proj"),
    ),
    "gpt_neox": Family(
        ("attention.query_key_value",), ("attention.dense",), ("mlp.dense_h_to_4h", "mlp.dense_4h_to_h")
    ),
    "gpt_oss": _ROUTED,
    "gptj": Family(("attn.q_proj", "attn.v_proj"), ("attn.k_proj", "attn.out_proj"), ("mlp.fc_in", "mlp.fc_out")),
    "granite": _LLAMA,
    "granitemoe": _ROUTED,
    "granitemoehybrid": replace(_LLAMA, mlp=("shared_mlp.input_linear", "shared_mlp.output_linear")),
    "helium": _LLAMA,
    "jamba": _HYBRID,
    "lfm2": Family(
        ("self_attn.q_proj", "self_attn.v_proj"),
        ("self_attn.k_proj", "self_attn.out_proj"),
        ("feed_forward.w1", "feed_forward.w2", "feed_forward.w3"),
    ),
    "llama": _LLAMA,
    "llama4_text": replace(
        _LLAMA,
        mlp=(
            "feed_forward.gate_proj",
            "feed_forward.up_proj",
            "feed_forward.down_proj",
            "feed_forward.shared_expert.gate_proj",
            "feed_forward.shared_expert.up_proj",
            "feed_forward.shared_expert.down_proj",
        ),
    ),
    "mamba": _WITHOUT_ATTENTION,
    "mamba2": _WITHOUT_ATTENTION,
    "ministral3": _LLAMA,
    "mistral": _LLAMA,
    "mixtral": _ROUTED,
    "mpt": Family(("attn.Wqkv",), ("attn.out_proj",), ("ffn.up_proj", "ffn.down_proj")),
    "nemotron": _WITHOUT_GATE,
    "olmo": _LLAMA,
    "olmo2": _LLAMA,
    "olmo3": _LLAMA,
    "olmoe": _ROUTED,
    "openai-gpt": _GPT2,
    "opt": Family(
        ("self_attn.q_proj", "self_attn.v_proj"),
        ("self_attn.k_proj", "self_attn.out_proj"),
        ("fc1", "fc2"),
    ),
    "phi": replace(_LLAMA, attention_rest=("self_attn.k_proj", "self_attn.dense"), mlp=("mlp.fc1", "mlp.fc2")),
    "phi3": Family(("self_attn.qkv_proj",), ("self_attn.o_proj",), _FUSED_MLP.mlp),
    "phimoe": _ROUTED,
    "qwen2": _LLAMA,
    "qwen2_moe": replace(_LLAMA, mlp=(*_LLAMA.mlp, *_ONE_SHARED.mlp)),
    "qwen3": _LLAMA,
    "qwen3_moe": _LLAMA,
    "qwen3_5_moe_text": _LINEAR_ATTENTION,
    "qwen3_5_text": _LINEAR_ATTENTION,
    "qwen3_next": _LINEAR_ATTENTION,
    "recurrent_gemma": Family(
        ("temporal_block.q_proj", "temporal_block.v_proj"),
        ("temporal_block.k_proj", "temporal_block.o_proj"),
        ("mlp_block.gate_proj", "mlp_block.up_proj", "mlp_block.down_proj"),
    ),
    "seed_oss": _LLAMA,
    "smollm3": _LLAMA,
    "stablelm": _LLAMA,
    "starcoder2": replace(_LLAMA, mlp=("mlp.c_fc", "mlp.c_proj")),
    "vaultgemma": _LLAMA,
    "xglm": _BART,
    "xlnet": _WITHOUT_ATTENTION,
}
