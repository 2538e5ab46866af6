"""Small tokenizers trained on the spot, saved as model folders, and templates for them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from tokenizers.processors import TemplateProcessing

WORDS = ["hello", "world", "the", "cat", "año", "naïve", "日本語", "привет", "🙂", "don't", "x=1;"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]

CHATML = """{% for message in messages %}
{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}
{% endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\n' }}
{% endif %}"""
WITH_BOS = """{{- bos_token }}
{%- for message in messages %}
    {%- set turn = '[' ~ message.role ~ ']\n' ~ (message['content'] | trim) ~ eos_token %}
    {{- turn }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '[assistant]\n' }}
{%- endif %}
"""
WITH_TOOLS = """{%- set ns = namespace(system='none', seen=0) %}
{%- for m in messages %}
    {%- if loop.index0 > 5 %}{% break %}{% endif %}
    {%- if m.role == 'system' %}{% set ns.system = m.content %}{% continue %}{% endif %}
    {%- set ns.seen = ns.seen + 1 %}
{{ m.role }}: {{ {'text': m.content, 'n': ns.seen, '<': '&'} | tojson }} {{ m | tojson(indent=2) }}
    {%- generation %} said {% endgeneration %}
{%- endfor %}
On {{ strftime_now('%Y') | length }} digits; {{ ns.system }}; {{ tools is none }} {{ dict(a=1).a }}
{% if add_generation_prompt %}assistant:{% endif %}
"""
STRICT = """{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('roles must alternate user/assistant') }}{% endif %}
<{{ m.role }}>{{ m.content }}{% endfor %}"""
TEMPLATES = {"chatml": CHATML, "bos": WITH_BOS, "tools": WITH_TOOLS, "strict": STRICT}


def corpus() -> list[str]:
    """The same few hundred lines every time."""
    draw = random.Random(7)
    return [" ".join(draw.choices(WORDS, k=12)) for _ in range(300)]


def byte_level() -> Tokenizer:
    """As GPT-2, Llama 3 and Qwen: every byte has a token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, special_tokens=SPECIAL)
    tokenizer.train_from_iterator(corpus(), trainer)
    return tokenizer


def byte_fallback() -> Tokenizer:
    """As Llama 2 and Mistral: spaces are a letter, unknown characters become byte tokens."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=450, special_tokens=["<unk>", *SPECIAL, *BYTES], limit_alphabet=30
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.post_processor = TemplateProcessing(
        single="<s> $A",
        pair="<s> $A $B",
        special_tokens=[("<s>", tokenizer.token_to_id("<s>"))],
    )
    # the byte tokens are ordinary ones; training knows no other way to put them in
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [t for t in state["added_tokens"] if t["content"] not in BYTES]
    return Tokenizer.from_str(json.dumps(state))


def unigram() -> Tokenizer:
    """As T5: whole words that begin with a Metaspace."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=["<unk>", *SPECIAL], unk_token="<unk>"
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    return tokenizer


TRAINED = {"byte_level": byte_level, "byte_fallback": byte_fallback, "unigram": unigram}


def save(folder: Path, tokenizer: Tokenizer, template: str | None = None, **config: Any) -> Path:
    """Write a model folder's tokenizer files; ``config`` goes into tokenizer_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    if template is not None:
        config["chat_template"] = template
    written = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": {"__type": "AddedToken", "content": "</s>", "special": True},
        "clean_up_tokenization_spaces": False,
        **config,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(written))
    return folder
