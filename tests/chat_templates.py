"""The chat templates of the LLM families that the exporter knows, and their special tokens.

Each as its publishers write it, less what it makes of tools and images.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """Special tokens in the vocabulary, markers that are plain text there, and the template."""

    special: tuple[str, ...]
    template: str
    markers: tuple[str, ...] = ()
    bos: str = ""
    eos: str = ""


_CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{% set first = messages[0]['content'] + '\n\n' %}{% set turns = messages[1:] %}"
    "{% else %}{% set first = '' %}{% set turns = messages %}{% endif %}"
    "{% for message in turns %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + (first if loop.first else '') "
    "+ message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
_INST = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token }}"
    "{% elif message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ '<<SYS>>\n' + message['content'] + '\n<</SYS>>\n\n' }}{% endif %}{% endfor %}"
)
_QWEN = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|vision_pad|>")

ARCHITECTURES = {
    "LlamaForCausalLM": ("Llama 3", "Llama 2", "SmolLM2", "DeepSeek"),
    "Qwen2ForCausalLM": ("Qwen2",),
    "Qwen3ForCausalLM": ("Qwen3",),
    "MistralForCausalLM": ("Mistral",),
    "Phi3ForCausalLM": ("Phi-3",),
    "GemmaForCausalLM": ("Gemma",),
    "Gemma2ForCausalLM": ("Gemma",),
    "Gemma3ForCausalLM": ("Gemma 3",),
    "SmolLM3ForCausalLM": ("SmolLM3",),
}
"""What the exporter takes, to the templates below that such models have."""

FAMILIES = {
    "Llama 3": Family(
        ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>",
         "<|eot_id|>", "<|python_tag|>", "<|reserved_special_token_0|>"),
        "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + "
        "'<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' %}"
        "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}"
        "{{ content }}{% endfor %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}",
        bos="<|begin_of_text|>", eos="<|eot_id|>",
    ),
    "Llama 2": Family(
        ("<unk>", "<s>", "</s>"), _INST,
        markers=("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"), bos="<s>", eos="</s>",
    ),
    "SmolLM2": Family(
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<file_sep>"),
        _CHATML, eos="<|im_end|>",
    ),
    "SmolLM3": Family(
        (*_QWEN, "<think>", "</think>", "<tool_call>", "</tool_call>"), _CHATML, eos="<|im_end|>"
    ),
    "Qwen2": Family(_QWEN, _CHATML, eos="<|im_end|>"),
    "Qwen3": Family(
        (*_QWEN, "<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>"),
        _CHATML, eos="<|im_end|>",
    ),
    "Mistral": Family(
        ("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]",
         "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[IMG]", "[SYSTEM_PROMPT]"),
        _INST, bos="<s>", eos="</s>",
    ),
    "Phi-3": Family(
        ("<unk>", "<s>", "</s>", "<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>",
         "<|user|>", "<|placeholder1|>"),
        "{% for message in messages %}{{'<|' + message['role'] + '|>\n' + message['content'] + "
        "'<|end|>\n'}}{% endfor %}{{ '<|assistant|>\n' }}",
        bos="<s>", eos="<|end|>",
    ),
    "Gemma": Family(
        ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>",
         "<unused7>"),
        _GEMMA, bos="<bos>", eos="<end_of_turn>",
    ),
    "Gemma 3": Family(
        ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>",
         "<start_of_image>", "<end_of_image>", "<image_soft_token>"),
        _GEMMA, bos="<bos>", eos="<end_of_turn>",
    ),
    "DeepSeek": Family(
        ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"),
        "{{ bos_token }}{% for message in messages %}"
        "{{ ('<｜Assistant｜>' if message['role'] == 'assistant' else '<｜User｜>') "
        "+ message['content'] }}{% endfor %}{{ '<｜Assistant｜>' }}",
        bos="<｜begin▁of▁sentence｜>", eos="<｜end▁of▁sentence｜>",
    ),
}  # fmt: skip
