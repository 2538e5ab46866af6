"""Serving: API, tokenizer, engine and detokenizer, each a process; and the shell."""
