"""Train the embedded model from nothing: `python -m minisgl.tiny.train --out DIR [--minutes 8]
[--device cuda]`.

Every batch is a function of the seed and its number, made by worker processes while the model
learns. A sequence is one document from position 0, never a pack of several, so attention needs no
document mask. Only what the model is to write carries loss. In the second half of training, most
steps see weights rounded to int4 or shaken by as much (gradients pass straight through), so that a
rounded copy of the model says the same.
"""

import argparse
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from minisgl.tiny.checkpoint import build_tokenizer, new_model, save
from minisgl.tiny.generate import Segment, corpus, document
from minisgl.tiny.rounding import linears, round_int4, shake_int4

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class Bucket(NamedTuple):
    """Sequences of one length (tokens), how many words fill one, and its share of the steps
    (percent).
    """

    length: int
    words: int
    percent: int


BUCKETS = (Bucket(256, 130, 45), Bucket(1024, 620, 30), Bucket(4096, 2500, 25))


class Batch(NamedTuple):
    """ids: (sequences, length) int16. at: flat positions whose next token is learned; target: those
    tokens.
    """

    ids: Tensor
    at: Tensor
    target: Tensor


class Batches(Dataset[Batch]):
    """Batch `i` of the training text, of about `tokens` tokens; a function of (seed, i)."""

    def __init__(
        self,
        tokenizer: "Tokenizer",
        seed: int,
        tokens: int,
        count: int,
        buckets: Sequence[Bucket] = BUCKETS,
    ) -> None:
        self.tokenizer, self.seed, self.tokens, self.count = tokenizer, seed, tokens, count
        self.buckets = buckets

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Batch:
        rng = Random(f"{self.seed}:{index}")
        bucket = rng.choices(self.buckets, [b.percent for b in self.buckets])[0]
        rows = max(1, self.tokens // bucket.length)
        ids = torch.zeros(rows, bucket.length, dtype=torch.int16)
        learn = torch.zeros(rows, bucket.length, dtype=torch.bool)
        row = 0
        while row < rows:
            docs = [document(rng, bucket.words) for _ in range(rows - row)]
            flat = [segment for doc in docs for segment in doc]
            codes = iter(
                self.tokenizer.encode_batch([s.text for s in flat], add_special_tokens=False)
            )
            for doc in docs:
                tokens, marks = _fit(doc, [next(codes).ids for _ in doc], bucket.length)
                if any(marks):
                    ids[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.int16)
                    learn[row, : len(marks)] = torch.tensor(marks)
                    row += 1
        flat_learn = learn.clone()
        flat_learn[:, 0] = False
        target_at = flat_learn.flatten().nonzero()[:, 0]
        return Batch(ids, target_at - 1, ids.flatten()[target_at].long())


def _fit(doc: list[Segment], codes: list[list[int]], length: int) -> tuple[list[int], list[bool]]:
    """As much of the document, cut after a learned segment, as fits `length` tokens."""
    tokens: list[int] = []
    marks: list[bool] = []
    end = 0
    for segment, code in zip(doc, codes, strict=True):
        tokens += code
        marks += [segment.learn] * len(code)
        if len(tokens) > length:
            break
        if segment.learn:
            end = len(tokens)
    return tokens[:end], marks[:end]


def forward(model: Any, batch: Batch) -> Tensor:
    """Mean loss (nats) over the learned tokens, with a small z-loss that keeps logits from
    drifting.
    """
    body = model.model
    x = body.embed_tokens(batch.ids.long())
    position = body.rotary_emb(x, torch.arange(x.shape[1], device=x.device)[None])
    for layer in body.layers:
        x = layer(x, attention_mask=None, position_embeddings=position)
    x = body.norm(x.flatten(0, 1)[batch.at])
    logits = F.linear(x, body.embed_tokens.weight).float()
    spread = torch.logsumexp(logits, 1)
    return (spread - logits.gather(1, batch.target[:, None])[:, 0]).mean() + 1e-5 * (
        spread**2
    ).mean()


def flatten(model: nn.Module) -> Tensor:
    """Lay all linear weights into one buffer and return it; the parameters become views of it."""
    weights = [m.weight for m in linears(model)]
    flat = torch.cat([w.detach().flatten() for w in weights])
    start = 0
    for w in weights:
        w.data = flat[start : start + w.numel()].view_as(w)
        start += w.numel()
    return flat


class Learner:
    """A model under training, in place: its weights and its optimizer. One batch at a time."""

    def __init__(self, model: Any, fused: bool = False) -> None:
        self.model, self.flat = model, flatten(model)
        self.params = list(model.parameters())
        decay = [p for p in self.params if p.ndim == 2]
        rest = [p for p in self.params if p.ndim < 2]
        groups = [{"params": decay, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), eps=1e-10, fused=fused)

    def learn(
        self, batch: Batch, rate: float, change: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """Take one step at this learning rate and return the loss before it.

        change: what the loss sees of the linear weights; gradients pass straight through.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        kept = self.flat.clone() if change is not None else None
        if change is not None:
            self.flat.copy_(change(self.flat))
        device = batch.ids.device.type
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = forward(self.model, batch)
        loss.backward()
        if kept is not None:
            self.flat.copy_(kept)
        nn.utils.clip_grad_norm_(self.params, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()


def losses(
    tokenizer: "Tokenizer", steps: int, seed: int = 0, tokens: int = 1024, rate: float = 1e-3
) -> Iterator[float]:
    """The loss (nats) of each of a few steps on the CPU, from random weights, on short documents:
    to see the training begin. tokens: of one step.
    """
    learner = Learner(new_model(seed))
    data = Batches(tokenizer, seed, tokens, steps, BUCKETS[:1])
    for step in range(steps):
        yield learner.learn(data[step], rate * min(1.0, (step + 1) / 8)).item()


def _loader(data: Batches, workers: int, device: str) -> Iterator[Batch]:
    loader: DataLoader[Batch] = DataLoader(
        data,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=8 if workers else None,
        pin_memory=device == "cuda",
    )
    for batch in loader:
        yield Batch(*(t.to(device, non_blocking=True) for t in batch))


def train(args: argparse.Namespace) -> None:
    """One training run, from the tokenizer to the written checkpoint."""
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    start = time.perf_counter()
    texts = (
        "".join(s.text for s in doc) for doc in islice(corpus(args.seed), args.tokenizer_documents)
    )
    tokenizer = build_tokenizer(texts)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    print(
        f"tokenizer: {tokenizer.get_vocab_size()} tokens, {time.perf_counter() - start:.0f} s",
        flush=True,
    )

    device: str = args.device
    torch.set_float32_matmul_precision("high")
    model = new_model(args.seed).to(device)
    learner = Learner(model, fused=device == "cuda")
    print(f"model: {sum(p.numel() for p in learner.params)} parameters", flush=True)
    if device == "cuda":
        for layer in model.model.layers:
            layer.compile(dynamic=False)
    dice = Random(args.seed)
    data = Batches(tokenizer, args.seed, args.tokens, args.steps or 10**9)
    begin = saved = told = time.perf_counter()
    seen, loss_sum, loss_count = 0, torch.zeros((), device=device), 0
    for step, batch in enumerate(_loader(data, args.workers, device)):
        now = time.perf_counter()
        done = max(step / args.steps if args.steps else 0.0, (now - begin) / 60 / args.minutes)
        if done >= 1:
            break
        rate = args.rate * min(1.0, (step + 1) / 300) * (0.5 + 0.5 * math.cos(math.pi * done))
        loss = learner.learn(batch, rate, _rounding(dice) if done > 0.4 else None)
        seen += batch.ids.numel()
        loss_sum += loss
        loss_count += 1
        if now - told > 15 or step in (10, 100):
            told = now
            print(
                f"{now - begin:6.0f} s  step {step:6d}  {seen / 1e6:7.1f} M tokens  "
                f"loss {loss_sum.item() / loss_count:.4f}",
                flush=True,
            )
            loss_sum, loss_count = torch.zeros((), device=device), 0
        if now - saved > 120:
            saved = now
            save(model, tokenizer, args.out)
    save(model, tokenizer, args.out)
    print(
        f"done: {step} steps, {seen / 1e6:.0f} M tokens, {time.perf_counter() - start:.0f} s in "
        f"all",
        flush=True,
    )


def _rounding(dice: Random) -> Callable[[Tensor], Tensor] | None:
    """How weights are seen in one of the later steps: exactly, shaken, or rounded."""
    mode = dice.random()
    if mode <= 0.25:
        return None
    if mode <= 0.6:
        return lambda flat: shake_int4(flat, 128)
    group = dice.choice((32, 64, 128))
    return lambda flat: round_int4(flat, group)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint")
    parser.add_argument(
        "--steps", type=int, default=0, help="stop after so many steps (0: by --minutes alone)"
    )
    parser.add_argument(
        "--minutes", type=float, default=8.0, help="stop after so many minutes of training"
    )
    parser.add_argument(
        "--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=3e-3, help="peak learning rate")
    parser.add_argument("--tokens", type=int, default=65536, help="tokens per step")
    parser.add_argument(
        "--tokenizer-documents", type=int, default=20000, help="documents the tokenizer learns from"
    )
    parser.add_argument(
        "--workers", type=int, default=max(1, (os.cpu_count() or 2) - 2), help="text processes"
    )
    train(parser.parse_args())


if __name__ == "__main__":
    main()
