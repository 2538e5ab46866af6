"""A model folder's tokenizer files, read into a codec.

``tokenizer.json`` is read here, fast. A folder that has only an older format is left to
transformers, which converts it and takes seconds to import. No code of a model folder ever runs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tokenizers import AddedToken, Tokenizer

from minisgl.tokenizer.codec import TextCodec
from minisgl.tokenizer.template import ChatTemplate

_OLDER: Final = (
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "vocab.txt",
    "tekken.json",
)
_NAMED: Final = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)


def load_codec(folder: str | Path) -> TextCodec | None:
    """The codec of a model folder, None if it has no tokenizer files.

    Raises ValueError that names the file that cannot be used.
    """
    folder = Path(folder)
    config = _read_json(folder / "tokenizer_config.json")
    if (folder / "tokenizer.json").exists():
        try:
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # the library raises no narrower class
            raise ValueError(f"{folder / 'tokenizer.json'} cannot be read: {error}") from error
    elif any((folder / name).exists() for name in _OLDER):
        tokenizer = _convert(folder)
    else:
        return None
    named = _special_tokens(folder, config)
    _add_tokens(tokenizer, config, folder)
    source = _template_source(folder, config)
    eos = tokenizer.token_to_id(named["eos_token"]) if "eos_token" in named else None
    return TextCodec(
        tokenizer,
        None if source is None else ChatTemplate(source, named),
        _frame(tokenizer, config, named),
        () if eos is None else (eos,),
    )


def _convert(folder: Path) -> Tokenizer:
    """What transformers makes of a tokenizer in an older format."""
    from transformers import AutoTokenizer  # takes seconds to import

    try:
        converted = AutoTokenizer.from_pretrained(
            str(folder), trust_remote_code=False, local_files_only=True
        )
        return Tokenizer.from_str(converted.backend_tokenizer.to_str())
    except Exception as error:  # anything may be wrong with a file in an unknown format
        raise ValueError(
            f"{folder} has no tokenizer.json and transformers cannot convert what it has: {error}; "
            "install sentencepiece and protobuf, which it may need for that, or save the tokenizer "
            "with save_pretrained() where it loads and use the tokenizer.json that makes"
        ) from error


def _special_tokens(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """The special tokens that have a name, as templates know them."""
    older = _read_json(folder / "special_tokens_map.json")
    found = {}
    for name in _NAMED:
        entry = config[name] if name in config else older.get(name)
        text = entry.get("content") if isinstance(entry, Mapping) else entry
        if isinstance(text, str):
            found[name] = text
    return found


def _add_tokens(tokenizer: Tokenizer, config: Mapping[str, Any], folder: Path) -> None:
    """Tokens that only tokenizer_config.json knows, under the ids it gives."""
    entries = config.get("added_tokens_decoder", {})
    for number, entry in sorted((int(number), entry) for number, entry in entries.items()):
        if tokenizer.token_to_id(entry["content"]) is None:
            flags = {key: bool(entry.get(key)) for key in ("lstrip", "rstrip", "single_word")}
            special, normal = bool(entry.get("special")), bool(entry.get("normalized"))
            token = AddedToken(entry["content"], special=special, normalized=normal, **flags)
            tokenizer.add_tokens([token])
            if tokenizer.token_to_id(entry["content"]) != number:
                raise ValueError(
                    f"{folder / 'tokenizer_config.json'} gives {entry['content']!r} the id {number}"
                    f", but the next free id is {tokenizer.get_vocab_size() - 1}; mend the file"
                )


def _frame(
    tokenizer: Tokenizer, config: Mapping[str, Any], named: Mapping[str, str]
) -> tuple[list[int], list[int]] | None:
    """What ``add_bos_token`` and ``add_eos_token`` ask for; None if neither is set."""
    asked = [config.get("add_bos_token"), config.get("add_eos_token")]
    if not any(isinstance(flag, bool) for flag in asked):
        return None
    own: list[int] = tokenizer.encode("").ids
    out = []
    for flag, name in zip(asked, ("bos_token", "eos_token"), strict=True):
        token = tokenizer.token_to_id(named[name]) if name in named else None
        wanted = flag if isinstance(flag, bool) else token in own
        out.append([token] if wanted and token is not None else [])
    return out[0], out[1]


def _template_source(folder: Path, config: Mapping[str, Any]) -> str | None:
    """The chat template: in a file of its own, or in one of two JSON files."""
    if (folder / "chat_template.jinja").exists():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    source = config.get("chat_template")
    if source is None:
        source = _read_json(folder / "chat_template.json").get("chat_template")
    if isinstance(source, list):  # several, by name
        source = {entry["name"]: entry["template"] for entry in source}.get("default")
    return source if isinstance(source, str) else None


def _read_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, it holds a {type(content).__name__}")
    return content
