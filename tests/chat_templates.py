"""Chat templates written for these tests, each with a construct of a family of real ones, and a tokenizer for them."""

from typing import Any

from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
SPECIAL_TOKENS = [
    *("<unk>", "<s>", "</s>", END_OF_TEXT, "<|im_start|>", "<|im_end|>", "<|user|>", "<|assistant|>", "<|system|>"),
    *("<|tool|>", "<|end|>", "<|return|>", "<|call|>", "<|start|>", "<|message|>", "<|channel|>"),
]

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TRIMS = (  # trims contents and writes a begin-of-text token
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content | trim + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
EMPTY_THOUGHT = (  # before the last response only
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
    "{% if m.role == 'assistant' and loop.last %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
    "{{ m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
PROMPTS_THOUGHT = (  # the generation prompt opens a thought that no rendered turn has
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '<|user|>' + m.content }}"
    "{% elif m.role == 'assistant' %}{{ '<|assistant|>' + m.content.split('</think>')[-1] + '</s>' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|><think>\\n' }}{% endif %}"
)
CLOSES_THOUGHT = PROMPTS_THOUGHT.replace(  # and where a tag begins like the one that the prompt ends in
    "'<|assistant|>' + m", "'<|assistant|></think>' + m"
)
LAST_THOUGHT = (  # rewrites thoughts, and leaves out those before the user's last message
    "{% set ns = namespace(last=0) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{% if m.role == 'assistant' %}"
    "{% set thought = (m.reasoning_content or m.content.split('</think>')[0].split('<think>')[-1]) | trim "
    "if m.reasoning_content or '</think>' in m.content else '' %}"
    "{% if loop.index0 > ns.last %}{{ '<think>\\n' + thought + '\\n</think>\\n\\n' }}{% endif %}"
    "{{ m.content.split('</think>')[-1] | trim }}{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n' }}{% endif %}"
)
TWO_ENDS = (  # closes the last turn with one more token
    "{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + '<|end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"
)
OTHER_END = (  # closes the last turn with another token, and writes more than the prompt before a response
    "{% for m in messages %}{% if m.role == 'assistant' %}"
    "{% if m.thinking and loop.last %}{{ '<|start|>assistant<|channel|>analysis<|message|>' + m.thinking + '<|end|>' }}"
    "{% endif %}{{ '<|start|>assistant<|channel|>final<|message|>' + m.content }}"
    "{{ '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' }}"
    "{% else %}{{ '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
)
NO_END = (  # a turn ends where the next message begins
    "{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
NO_TOKENS = (
    "{% for m in messages %}{{ m.role + ': ' + m.content + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
NO_PROMPT = (  # responses follow the user's closing tag, and roles must alternate
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}"
    "{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + '</s>' }}{% endif %}{% endfor %}"
)
ALWAYS_PROMPTS = (  # whether a response follows or not
    "{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + '<|end|>' }}{% endfor %}{{ '<|assistant|>\\n' }}"
)
GENERATION = (  # marks what is generated, here without the first line of a turn
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{% if m.role == 'assistant' %}{{ 'Reply: ' }}"
    "{% generation %}{{ m.content + '<|im_end|>\\n' }}{% endgeneration %}{% else %}{{ m.content + '<|im_end|>\\n' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LEAVES_OUT = (  # any role but user and assistant
    "{% for m in messages %}{% if m.role == 'user' %}{{ 'U:' + m.content + '\\n' }}"
    "{% elif m.role == 'assistant' %}{{ 'A:' + m.content + eos_token + '\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'A:' }}{% endif %}"
)
TOOLS = (  # arguments one by one; the calls of a tool end in another token
    "{% if tools %}{{ '<|system|>' + tools | tojson + '<|end|>' }}{% endif %}"
    "{% for m in messages %}{{ '<|' + m.role + '|>' + (m.content | tojson if m.role == 'tool' else m.content) }}"
    "{% for call in m.tool_calls or [] %}{{ '<call>' + call.function.name + '\\n' }}"
    "{% for key, value in call.function.arguments.items() %}{{ key ~ '=' ~ value ~ '\\n' }}{% endfor %}{{ '</call>' }}"
    "{% endfor %}{{ '<|call|>' if m.tool_calls else '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
JSON_TOOLS = TOOLS.replace(  # arguments must be a text
    "{% for key, value in call.function.arguments.items() %}{{ key ~ '=' ~ value ~ '\\n' }}{% endfor %}",
    "{{ '' + call.function.arguments }}",
)


def chat_tokenizer(template: str | None, end_of_text: str | None = END_OF_TEXT) -> PreTrainedTokenizerFast:
    """A tokenizer of bytes and the special tokens above."""
    characters = sorted(ByteLevel.alphabet())
    backend = Tokenizer(BPE({token: number for number, token in enumerate([*SPECIAL_TOKENS, *characters])}, merges=[]))
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    names: dict[str, Any] = {"unk_token": "<unk>", "bos_token": "<s>", "additional_special_tokens": SPECIAL_TOKENS}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    tokenizer.eos_token = end_of_text
    tokenizer.chat_template = template
    return tokenizer
