"""Measure a checkpoint on held-out prompts: `python -m minisgl.tiny.evaluate [DIR] [--n 200]`
prints three tables, `--against DIR` one that sets another beside it.

Accuracy counts an answer right only if the whole text equals the right answer and the model stopped
by itself. The gap of a greedy step is the first logit less the second, in nats. Agreement is how
often a rounded copy of the weights writes the same first 64 tokens. Everything runs in
transformers' Qwen3ForCausalLM, float32 unless said.
"""

import argparse
import copy
import inspect
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any, NamedTuple, cast, get_args

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from minisgl.kernel.int4 import Int4, dequantise
from minisgl.tiny import path, stories
from minisgl.tiny.draw import Draw
from minisgl.tiny.generate import END_OF_TEXT, IM_END, LongKind, examples, long_chat
from minisgl.tiny.rounding import linears, round_int4
from minisgl.tiny.skills import SKILLS

PERCENTILES = (0.0, 0.1, 1.0, 5.0, 50.0)
LONG_KINDS = get_args(LongKind)
LONG = (250, 500, 1000, 1700)


class Prompt(NamedTuple):
    """A text ready to encode, the right continuation, and the token text that should end it."""

    text: str
    answer: str
    end: str


class Written(NamedTuple):
    """What the model wrote: tokens (with the end token, if it came) and the gap of each step
    (nats).
    """

    tokens: list[int]
    gaps: list[float]


def load(folder: Path, device: str = "cpu") -> tuple[Any, Any]:
    """Tokenizer and float32 model of a checkpoint folder; weights of four bits are unpacked."""
    from transformers import AutoConfig, AutoTokenizer, Qwen3ForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = AutoConfig.from_pretrained(folder)
    if getattr(config, "quantization_config", None) is None:
        model = Qwen3ForCausalLM.from_pretrained(folder)
    else:  # transformers would want a package of kernels for it
        del config.quantization_config
        model = Qwen3ForCausalLM(config)
        model.load_state_dict(_unpacked(folder), strict=False)
        model.tie_weights()
    return tokenizer, model.float().to(device).eval()


def _unpacked(folder: Path) -> dict[str, Tensor]:
    state = load_file(folder / "model.safetensors")
    for name in [name for name in state if name.endswith(".qweight")]:
        matrix = name.removesuffix(".qweight")
        codes, zeros, scales = (
            state.pop(f"{matrix}.{part}") for part in ("qweight", "qzeros", "scales")
        )
        state[f"{matrix}.weight"] = dequantise(Int4(codes, zeros, scales, torch.float32))
    return state


def _plain(d: Draw) -> Prompt:
    facts = d.settle(lambda: stories.draw(d.rng, d.name(), home=True), lambda f: f.key)
    return Prompt(stories.titled(facts), stories.tell(facts).text, END_OF_TEXT)


def prompts(tokenizer: Any, skill: str, n: int, seed: int = 1) -> list[Prompt]:
    """Held-out prompts: a skill of `SKILLS`, "plain" (a story after its title), or "notes-N",
    "absent-N", "library-N", "mixed-N" (a question after about N words).
    """
    if skill == "plain":
        return [_plain(Draw(Random(f"plain:{seed}:{i}"), held=True)) for i in range(n)]
    kind, _, size = skill.partition("-")
    if size:
        long_kind = cast(LongKind, kind)
        cases = [long_chat(int(size), seed * 100_000 + i, long_kind) for i in range(n)]
    else:
        cases = examples(skill, n, seed)
    return [
        Prompt(
            tokenizer.apply_chat_template(m, tokenize=False, add_generation_prompt=True),
            answer,
            IM_END,
        )
        for m, answer in cases
    ]


def cache_of(model: Any) -> str:
    """What a model of transformers calls its cache: an argument of its call and a field of what
    that returns. It has another name from 5.24 on."""
    known = inspect.signature(model.forward).parameters
    return "cache" if "cache" in known else "past_key_values"


@torch.inference_mode()
def greedy(model: Any, ids: Sequence[list[int]], ends: set[int], limit: int) -> list[Written]:
    """Greedy continuation of each prompt, at most `limit` tokens."""
    room, rows_max = (131072, 512) if model.device.type == "cuda" else (16384, 64)
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    out: list[Written] = [Written([], []) for _ in ids]
    while order:
        size = max(1, min(len(order), rows_max, room // len(ids[order[-1]])))
        rows, order = order[-size:], order[:-size]
        _greedy_batch(model, [ids[i] for i in rows], [out[i] for i in rows], ends, limit)
    return out


def _greedy_batch(
    model: Any, ids: list[list[int]], out: list[Written], ends: set[int], limit: int
) -> None:
    device = model.device
    width = max(map(len, ids))
    tokens = torch.tensor([[0] * (width - len(row)) + row for row in ids], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids], device=device)
    position = (mask.cumsum(1) - 1).clamp(min=0)
    name, cache, live = cache_of(model), None, set(range(len(ids)))
    for _ in range(limit):
        result = model(
            tokens,
            attention_mask=mask,
            position_ids=position,
            logits_to_keep=1,
            **{name: cache},
        )
        cache = getattr(result, name)
        top = result.logits[:, -1].float().topk(2)
        gap = (top.values[:, 0] - top.values[:, 1]).tolist()
        best = top.indices[:, 0]
        for i, token in enumerate(best.tolist()):
            if i in live:
                out[i].tokens.append(token)
                out[i].gaps.append(gap[i])
                if token in ends:
                    live.discard(i)
        if not live:
            return
        tokens, position = best[:, None], position[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(ids), 1)], 1)


def rounded(model: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A copy of the model whose linear layers hold `change(weight)`."""
    twin = copy.deepcopy(model)
    for layer in linears(twin):
        layer.weight = nn.Parameter(change(layer.weight.detach()), requires_grad=False)
    return twin


def variants(model: Any) -> dict[str, Any]:
    """The roundings whose texts are compared with the float32 model's."""
    return {
        "float16 arithmetic": copy.deepcopy(model).half(),
        "bfloat16 arithmetic": copy.deepcopy(model).bfloat16(),
        "int4 weights, group 32": rounded(model, lambda w: round_int4(w, 32)),
        "int4 weights, group 64": rounded(model, lambda w: round_int4(w, 64)),
        "int4 weights, group 128": rounded(model, lambda w: round_int4(w, 128)),
    }


def percentiles(values: list[float]) -> list[float]:
    """`PERCENTILES` of the values, each an observed value."""
    ordered = sorted(values)
    return [ordered[min(len(ordered) - 1, int(p / 100 * len(ordered)))] for p in PERCENTILES]


class Measured(NamedTuple):
    """What a checkpoint made of held-out prompts of one skill, each list in the prompts' order."""

    skill: str
    cases: list[Prompt]
    ids: list[list[int]]  # of the prompts
    written: list[Written]
    texts: list[str]  # what was written, special tokens included

    @property
    def right(self) -> int:
        """How many texts equal the right answer and stop."""
        pairs = zip(self.texts, self.cases, strict=True)
        return sum(text == case.answer + case.end for text, case in pairs)

    def stopped(self, ends: set[int]) -> int:
        """How many ended with one of these tokens rather than at the limit."""
        return sum(w.tokens[-1] in ends for w in self.written)

    @property
    def gaps(self) -> list[float]:
        """The gap of every step."""
        return [gap for w in self.written for gap in w.gaps]


def ends_of(tokenizer: Any) -> set[int]:
    """The tokens that end an answer or a story."""
    return set(tokenizer.convert_tokens_to_ids([END_OF_TEXT, IM_END]))


def measure(tokenizer: Any, model: Any, skill: str, n: int, seed: int = 1) -> Measured:
    """Let a checkpoint answer n prompts of a skill, as ``prompts`` names it; 320 tokens at most."""
    cases = prompts(tokenizer, skill, n, seed)
    ids = [tokenizer(c.text, add_special_tokens=False)["input_ids"] for c in cases]
    written = greedy(model, ids, ends_of(tokenizer), 320)
    plain = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    return Measured(
        skill, cases, ids, written, [tokenizer.decode(w.tokens, **plain) for w in written]
    )


def accuracy(
    tokenizer: Any, model: Any, names: Sequence[str], n: int
) -> tuple[list[str], dict[str, list[list[int]]]]:
    """Lines of the accuracy and gap table, and the prompts' tokens by skill. Prints two wrong
    answers a skill.
    """
    ends = ends_of(tokenizer)
    lines = [
        "| skill | prompts | right | stopped | mean prompt (tokens) | gap min | 0.1 % | 1 % | "
        "5 % | 50 % |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    encoded: dict[str, list[list[int]]] = {}
    every: list[float] = []
    for name in names:
        found = measure(tokenizer, model, name, n)
        pairs = zip(found.cases, found.texts, strict=True)
        wrong = ((case, text) for case, text in pairs if text != case.answer + case.end)
        for case, text in islice(wrong, 2):
            print(
                f"wrong, {name}: ...{case.text[-120:]!r}\n  wrote {text!r}\n  right {case.answer!r}"
            )
        every += found.gaps
        encoded[name] = found.ids
        mean = sum(map(len, found.ids)) / len(found.ids)
        right, stopped = found.right / n, found.stopped(ends) / n
        lines.append(_row(name, len(found.cases), right, stopped, mean, found.gaps))
    lines.append(
        f"| all, {len(every)} steps | | | | | "
        + " | ".join(f"{g:.2f}" for g in percentiles(every))
        + " |"
    )
    return lines, encoded


def _row(name: str, n: int, right: float, stopped: float, mean: float, gaps: list[float]) -> str:
    numbers = " | ".join(f"{g:.2f}" for g in percentiles(gaps))
    return (
        f"| {name} | {n} | {100 * right:.1f} % | {100 * stopped:.1f} % | {mean:.0f} | {numbers} |"
    )


def agreement(model: Any, ends: set[int], encoded: dict[str, list[list[int]]]) -> list[str]:
    """Lines of the agreement table: texts of at most 64 tokens equal to the float32 model's, per
    rounding.
    """
    ids = [row for name, rows in encoded.items() for row in (rows[:20] if "-" in name else rows)]
    base = [w.tokens for w in greedy(model, ids, ends, 64)]
    lines = ["| rounding | texts | same 64 tokens |", "|---|---|---|"]
    for name, twin in variants(model).items():
        texts = [w.tokens for w in greedy(twin, ids, ends, 64)]
        same = sum(a == b for a, b in zip(base, texts, strict=True))
        lines.append(f"| {name} | {len(ids)} | {100 * same / len(ids):.2f} % |")
    return lines


def comparison(tokenizer: Any, model: Any, other: Any, names: Sequence[str], n: int) -> list[str]:
    """Lines of a table of two checkpoints on the same prompts: how many answers are right, how many
    whole texts are the same, and the least gap. A fifth as many prompts of the long kinds.
    """
    lines = [
        "| skill | prompts | right | other right | same text | gap min | other gap min |",
        "|---|---|---|---|---|---|---|",
    ]
    total, least = [0, 0, 0, 0], [float("inf"), float("inf")]
    for name in names:
        count = max(1, n // 5) if "-" in name else n
        one, two = (measure(tokenizer, some, name, count) for some in (model, other))
        same = sum(a.tokens == b.tokens for a, b in zip(one.written, two.written, strict=True))
        counts, gaps = [count, one.right, two.right, same], [min(one.gaps), min(two.gaps)]
        lines.append(_compared(name, counts, gaps))
        total = [a + b for a, b in zip(total, counts, strict=True)]
        least = [min(pair) for pair in zip(least, gaps, strict=True)]
    return [*lines, _compared("all", total, least)]


def _compared(name: str, counts: list[int], gaps: list[float]) -> str:
    shares = " | ".join(f"{count / counts[0]:.1%}".replace("%", " %") for count in counts[1:])
    return f"| {name} | {counts[0]} | {shares} | {gaps[0]:.2f} | {gaps[1]:.2f} |"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?", default=path(), help="checkpoint folder")
    parser.add_argument("--n", type=int, default=200, help="prompts per skill")
    parser.add_argument("--against", type=Path, metavar="DIR", help="one table of both instead")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    tokenizer, model = load(args.folder, args.device)
    names = ["plain", *SKILLS, *(f"{k}-{w}" for k in LONG_KINDS for w in LONG)]
    if args.against is not None:
        _, other = load(args.against, args.device)
        print("\n".join(comparison(tokenizer, model, other, names, args.n)))
        return
    lines, encoded = accuracy(tokenizer, model, names, args.n)
    print("\n" + "\n".join(lines) + "\n", flush=True)
    print("\n".join(agreement(model, ends_of(tokenizer), encoded)), flush=True)


if __name__ == "__main__":
    main()
