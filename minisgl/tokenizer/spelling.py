"""Single tokens as bytes, for reports of logprobs: a token may be a part of a character."""

from __future__ import annotations

import functools
import re
from typing import Final

from tokenizers import Tokenizer

_BYTE: Final = re.compile(r"<0x([0-9A-F]{2})>")


class Spelling:
    """Each token's bytes; those of a text's tokens joined are its text, special tokens aside.

    (A tokenizer in sentencepiece's style leaves out the space before a text's first word.)
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self._added = {token: entry.content.encode() for token, entry in added.items()}
        self._by_bytes = "ByteLevel" in repr(tokenizer.decoder)
        self._anchor = self._find_anchor()
        self.of = functools.lru_cache(1 << 16)(self._of)

    def _of(self, token: int) -> bytes:
        """A token's bytes; a special token's are its name, an unknown id has none."""
        if token in self._added:
            return self._added[token]
        name = self._tokenizer.id_to_token(token)
        if name is None:
            return b""
        if self._by_bytes and all(char in _BYTES for char in name):
            return bytes(_BYTES[char] for char in name)
        if byte := _BYTE.fullmatch(name):
            return bytes([int(byte[1], 16)])
        if self._anchor is None:
            return str(self._tokenizer.decode([token])).encode()
        before, text = self._anchor  # a token that stands first may lose its space
        return str(self._tokenizer.decode([before, token]))[len(text) :].encode()

    def _find_anchor(self) -> tuple[int, str] | None:
        for letter in "aeinx":
            token = self._tokenizer.token_to_id(letter)
            if token is not None:
                return token, str(self._tokenizer.decode([token]))
        return None


def _byte_names() -> dict[str, int]:
    """The character that stands for each byte in a byte-level vocabulary.

    Source: Radford et al. 2019, the published code of GPT-2: printable bytes stand for themselves,
    the others for the characters from 256 on.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    names = {chr(byte): byte for byte in printable}
    return names | {chr(256 + n): byte for n, byte in enumerate(others)}


_BYTES: Final = _byte_names()
