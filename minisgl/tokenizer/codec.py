"""Text to token ids and back for one model. Knows no files and no model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer

from minisgl.tokenizer.detokenizer import Detokenizer
from minisgl.tokenizer.spelling import Spelling
from minisgl.tokenizer.template import ChatTemplate


class TextCodec:
    """A tokenizer and a chat template. Immutable; safe to use from several threads.

    tokenizer: is taken over; cutting and padding are switched off in it.
    template: None for a model that was not made for conversations.
    frame: the ids before and after a plain prompt; None: what the tokenizer itself puts there.
    eos_ids: the ids that end a text.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: ChatTemplate | None = None,
        frame: tuple[list[int], list[int]] | None = None,
        eos_ids: tuple[int, ...] = (),
    ) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer, self.template = tokenizer, template
        self._frame, self.eos_ids = frame, eos_ids
        self._spelling = Spelling(tokenizer)
        self.vocab_size: int = tokenizer.get_vocab_size(with_added_tokens=True)
        added = tokenizer.get_added_tokens_decoder()
        self._special = frozenset(token for token, entry in added.items() if entry.special)
        found = (tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in range(256))
        self._byte_ids = frozenset(token for token in found if token is not None)

    def encode(self, text: str) -> list[int]:
        """A plain prompt's token ids, with the tokens that the model expects around it.

        Raises TypeError if it is no string, ValueError if it holds half of a surrogate pair.
        """
        if self._frame is None:
            return self._ids(text, special=True)
        before, after = self._frame
        return before + self._ids(text, special=False) + after

    def chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """The token ids of a conversation, ready for the assistant's next turn.

        Special tokens written in a message become special tokens, as with transformers: check what
        you do not trust. Raises TypeError or ValueError if there is no template or it refuses.
        """
        if self.template is None:
            raise ValueError(
                "this model has no chat template, so it takes no conversation; "
                "pass a plain string, or put a chat_template.jinja into its folder"
            )
        return self._ids(self.template.render(messages), special=False)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens and ids outside the vocabulary left out."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def spell(self, token: int) -> bytes:
        """One token's bytes, which may be a part of a character; see ``Spelling``."""
        return self._spelling.of(token)

    def detokenizer(self) -> Detokenizer:
        """A new stream of text, whose pieces joined equal ``decode`` of all ids."""
        return Detokenizer(self.decode, self._is_silent, self._byte_ids)

    def _is_silent(self, token: int) -> bool:
        return token in self._special or self._tokenizer.id_to_token(token) is None

    def _ids(self, text: str, special: bool) -> list[int]:
        if not isinstance(text, str):
            raise TypeError(f"a prompt must be a string, got {text!r:.80}")
        try:
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=special).ids
        except (TypeError, UnicodeEncodeError) as error:
            half = re.search("[\ud800-\udfff]", text)
            if half is None:
                raise
            raise ValueError(
                f"character {half.start()} of the prompt is half of a surrogate pair "
                f"({half[0]!r}), which is no text; decode the input with errors='replace'"
            ) from error
        return ids
