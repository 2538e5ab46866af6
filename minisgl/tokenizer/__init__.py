"""Text to token ids and back: chat template, codec, incremental detokenizer. Knows no model."""

from minisgl.tokenizer.codec import TextCodec
from minisgl.tokenizer.detokenizer import Detokenizer
from minisgl.tokenizer.files import load_codec
from minisgl.tokenizer.template import ChatTemplate

__all__ = ["ChatTemplate", "Detokenizer", "TextCodec", "load_codec"]
