"""Tiny random transformers models on disk, as incomplete for classification as real pretrained checkpoints are."""

from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import BPE, WordLevel
from tokenizers.pre_tokenizers import ByteLevel, Whitespace
from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    BertConfig,
    BertForMaskedLM,
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    ElectraConfig,
    ElectraForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    RobertaConfig,
    RobertaForMaskedLM,
)

VOCABULARY_SIZE = 200
HIDDEN = 32
MLP = 64
LAYERS = 2
HEADS = 4
POSITIONS = 40

ENCODER_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
DECODER_TOKENS = ["<unk>", "<|endoftext|>"]

_BERT_SIZES = {
    "vocab_size": VOCABULARY_SIZE,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": MLP,
    "max_position_embeddings": POSITIONS,
    "pad_token_id": 0,
}
_LLAMA_SIZES = {
    **_BERT_SIZES,
    "num_key_value_heads": 2,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 1,
}

ENCODERS: dict[str, Callable[[], PreTrainedModel]] = {
    "albert": lambda: AlbertForMaskedLM(AlbertConfig(**_BERT_SIZES, embedding_size=16, bos_token_id=2, eos_token_id=3)),
    "bert": lambda: BertForMaskedLM(BertConfig(**_BERT_SIZES)),
    "deberta-v2": lambda: DebertaV2ForMaskedLM(
        DebertaV2Config(
            **_BERT_SIZES,
            type_vocab_size=0,
            relative_attention=True,
            position_buckets=8,
            share_att_key=True,
            pos_att_type=["p2c", "c2p"],
            norm_rel_ebd="layer_norm",
            position_biased_input=False,
        )
    ),
    "distilbert": lambda: DistilBertForMaskedLM(
        DistilBertConfig(
            vocab_size=VOCABULARY_SIZE,
            dim=HIDDEN,
            n_layers=LAYERS,
            n_heads=HEADS,
            hidden_dim=MLP,
            max_position_embeddings=POSITIONS,
            pad_token_id=0,
        )
    ),
    "electra": lambda: ElectraForMaskedLM(ElectraConfig(**_BERT_SIZES, embedding_size=16)),
    "modernbert": lambda: ModernBertForMaskedLM(
        ModernBertConfig(
            **_BERT_SIZES, bos_token_id=2, eos_token_id=3, cls_token_id=2, sep_token_id=3, local_attention=8
        )
    ),
    "roberta": lambda: RobertaForMaskedLM(
        RobertaConfig(**_BERT_SIZES, type_vocab_size=1, bos_token_id=2, eos_token_id=3)
    ),
}
DECODERS: dict[str, Callable[[], PreTrainedModel]] = {
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY_SIZE,
            n_embd=HIDDEN,
            n_layer=LAYERS,
            n_head=HEADS,
            n_inner=MLP,
            n_positions=POSITIONS,
            bos_token_id=1,
            eos_token_id=1,
        )
    ),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**_LLAMA_SIZES)),
    "opt": lambda: OPTForCausalLM(
        OPTConfig(
            vocab_size=VOCABULARY_SIZE,
            hidden_size=HIDDEN,
            word_embed_proj_dim=HIDDEN,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            ffn_dim=MLP,
            max_position_embeddings=POSITIONS,
            pad_token_id=None,
            bos_token_id=1,
            eos_token_id=1,
        )
    ),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**_LLAMA_SIZES)),
}
# Beside the families that most tests walk.
MIXTURES: dict[str, Callable[[], PreTrainedModel]] = {
    "olmoe": lambda: OlmoeForCausalLM(OlmoeConfig(**_LLAMA_SIZES, num_experts=4, num_experts_per_tok=2)),
    "gpt_oss": lambda: GptOssForCausalLM(
        GptOssConfig(**_LLAMA_SIZES, head_dim=8, num_local_experts=4, num_experts_per_tok=2, sliding_window=8)
    ),
}
FAMILIES = sorted(ENCODERS | DECODERS)


def save_tiny_backbone(family: str, folder: Path) -> Path:
    """Saves a tiny random language model and its tokenizer, offline.

    Args:
        family: One of `FAMILIES` or `MIXTURES`, which are transformers' model types.
        folder: Where to; made if it does not exist.

    Returns:
        The folder. Its weights are a language model's, without a classification head; the tokenizer of a decoder
        has an end-of-text token and no padding token.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = (ENCODERS | DECODERS | MIXTURES)[family]()
    _quietly(lambda: model.save_pretrained(folder))
    _tokenizer(family).save_pretrained(folder)
    return folder


def _quietly(save: Callable[[], None]) -> None:
    transformers.utils.logging.disable_progress_bar()
    save()


def _tokenizer(family: str) -> PreTrainedTokenizerFast:
    is_decoder = family in DECODERS | MIXTURES
    special = DECODER_TOKENS if is_decoder else ENCODER_TOKENS
    words = [f"w{index}" for index in range(VOCABULARY_SIZE - len(special))]
    unknown = special[0] if is_decoder else special[1]
    backend = Tokenizer(WordLevel({word: index for index, word in enumerate(special + words)}, unk_token=unknown))
    backend.pre_tokenizer = Whitespace()
    if family == "qwen2":  # transformers insists on its byte-level class for this one: a token a character
        characters = [*special, "\u0120", *"w0123456789"]
        backend = Tokenizer(BPE({word: index for index, word in enumerate(characters)}, merges=[]))
        backend.pre_tokenizer = ByteLevel(add_prefix_space=False)
    if is_decoder:
        return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="<|endoftext|>")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )
