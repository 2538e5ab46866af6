"""Who is measured: this engine, and what peers are installed. All answer the same requests."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from minisgl.bench.work import Asked, Work
from minisgl.build import load
from minisgl.core import SamplingParams

Tokens = list[list[int]]


class Side(Protocol):
    """Someone who generates. Construction loads the model and is not timed."""

    name: str

    def run(self, work: Work) -> Tokens:
        """Each request's tokens."""
        ...

    def close(self) -> None:
        """Give the model's memory back."""
        ...


class Ours:
    """This engine, all requests added at once."""

    def __init__(self, folder: Path, name: str = "minisgl", **toggles: Any) -> None:
        self.name = name
        sizes: dict[str, Any] = dict(threads=1, num_pages=2048, max_seq_len=2048, record=False)
        self._engine = load(folder, **(sizes | toggles))

    def run(self, work: Work) -> Tokens:
        """See ``Side``."""
        requests = [
            self._engine.add(
                asked.prompt, SamplingParams(max_tokens=asked.num_tokens, ignore_eos=True)
            )
            for asked in work.requests
        ]
        while self._engine.step():
            pass
        return [list(request.output) for request in requests]

    def close(self) -> None:
        """See ``Side``."""
        self._engine.close()


class Generate:
    """transformers' ``generate``: left-padded batches of requests that end at about the same time.

    order: requests are sorted by their number of tokens, "prompt" by their prompts first.
    """

    def __init__(self, folder: Path, batch: int = 64, order: str = "tokens") -> None:
        self.name = f"generate, {batch} at a time by {order}"
        self._model, self._batch, self._order = _transformers(folder), batch, order

    def run(self, work: Work) -> Tokens:
        """See ``Side``. A batch runs to its longest; what it made beyond a request is left out."""
        out: Tokens = [[] for _ in work.requests]

        def key(i: int) -> tuple[int, int]:
            lengths = work.requests[i].num_tokens, len(work.requests[i].prompt)
            return lengths if self._order == "tokens" else lengths[::-1]

        order = sorted(range(len(out)), key=key)
        for i in range(0, len(order), self._batch):
            some = order[i : i + self._batch]
            for at, tokens in zip(
                some, self._together([work.requests[j] for j in some]), strict=True
            ):
                out[at] = tokens
        return out

    def _together(self, asked: Sequence[Asked]) -> Tokens:
        import torch

        width = max(len(one.prompt) for one in asked)
        ids = torch.tensor([[0] * (width - len(one.prompt)) + one.prompt for one in asked])
        mask = torch.tensor(
            [[0] * (width - len(one.prompt)) + [1] * len(one.prompt) for one in asked]
        )
        n = max(one.num_tokens for one in asked)
        with torch.inference_mode():
            made = self._model.generate(
                ids, attention_mask=mask, max_new_tokens=n, min_new_tokens=n, do_sample=False
            )
        return [
            row[width : width + one.num_tokens].tolist()
            for row, one in zip(made, asked, strict=True)
        ]

    def close(self) -> None:
        """See ``Side``."""
        self._model = None


class Continuous:
    """transformers' continuous batching, with a cache as large as ours and no more.

    Left to itself it takes nine tenths of the machine's memory for the cache.
    """

    name = "continuous batching"

    def __init__(self, folder: Path) -> None:
        self._model = _transformers(folder)

    def run(self, work: Work) -> Tokens:
        """See ``Side``. All run to the longest, since it has one length for all."""
        from transformers import GenerationConfig
        from transformers.generation.configuration_utils import ContinuousBatchingConfig

        config = GenerationConfig(
            max_new_tokens=max(asked.num_tokens for asked in work.requests),
            do_sample=False,
            eos_token_id=-1,
            pad_token_id=0,
        )
        sizes = ContinuousBatchingConfig(page_size=32, num_blocks=1024, max_batch_tokens=512)
        prompts = [asked.prompt for asked in work.requests]
        out = self._model.generate_batch(
            prompts, generation_config=config, continuous_batching_config=sizes
        )
        made = [out[f"req_{i}"].generated_tokens for i in range(len(prompts))]
        return [
            list(tokens[: asked.num_tokens])
            for tokens, asked in zip(made, work.requests, strict=True)
        ]

    def close(self) -> None:
        """See ``Side``."""
        self._model = None


class Vllm:
    """vLLM's build for CPUs, where one is installed: ``missing`` says why it is not measured."""

    name = "vllm"

    def __init__(self, folder: Path) -> None:
        vllm: Any = __import__("vllm")
        self._vllm = vllm
        self._model = vllm.LLM(
            str(folder), skip_tokenizer_init=True, dtype="float32", enable_prefix_caching=True
        )

    @staticmethod
    def missing() -> str | None:
        """Why there is no such side here; None: there is."""
        return None if find_spec("vllm") else "vllm is not installed"

    def run(self, work: Work) -> Tokens:
        """See ``Side``."""
        sampling = [
            self._vllm.SamplingParams(
                temperature=0, max_tokens=asked.num_tokens, ignore_eos=True, detokenize=False
            )
            for asked in work.requests
        ]
        prompts = [{"prompt_token_ids": asked.prompt} for asked in work.requests]
        made = self._model.generate(prompts, sampling, use_tqdm=False)
        return [list(one.outputs[0].token_ids) for one in made]

    def close(self) -> None:
        """See ``Side``."""
        self._model = None


def _transformers(folder: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, logging

    logging.set_verbosity_error()
    torch.set_num_threads(1)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
