"""Plant known mistakes into a copy of the project, one at a time: does the suite notice each?

Command: python tests/planted_bugs.py [PART OF A NAME ...], by default all; about ten seconds each.
Some are mistakes that other engines have shipped. Each is a replacement that must fit exactly once.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
HOST = ("tests/engine", "tests/kvcache", "tests/scheduler")


class Bug(NamedTuple):
    """A mistake: in ``file``, ``right`` becomes ``wrong``; ``tests`` should fail."""

    name: str
    file: str
    right: str
    wrong: str
    tests: tuple[str, ...] = HOST


SCHEDULER, LEDGER = "minisgl/scheduler/scheduler.py", "minisgl/scheduler/ledger.py"
FIGURES = ("tests/inspector/figures",)
AWQ = ("tests/quantization", "tests/quantize", "tests/kernel/test_int4.py")
DECODER, DECODES = "minisgl/models/decoder.py", ("tests/models/test_decoder.py",)
MEGAKERNEL = "minisgl/kernel/megakernel.py"
MARLIN, EMULATED = "minisgl/kernel/csrc/marlin.cuh", ("tests/kernel/test_marlin.py",)
MANY, MANY_TOKENS = "minisgl/kernel/csrc/many.cuh", ("tests/kernel/test_many.py",)
DECODE, DECODE_STEPS = "minisgl/kernel/csrc/decode.cuh", ("tests/kernel/test_decode.py",)
MEGA, ONE_TOKEN = "minisgl/kernel/csrc/megakernel.cuh", ("tests/kernel/test_megakernel.py",)
RADIX, PAGES = "minisgl/kvcache/radix.py", "minisgl/kvcache/pages.py"
RANKS = "minisgl/executor/ranks.py"
PROFILER, PROFILED = "minisgl/executor/profiler.py", ("tests/executor/test_profiler.py",)
TP = ("tests/executor/test_tp_runner.py",)
BOUNDS, FAULTS = "tests/server/test_bounds.py", "tests/server/test_faults.py"

BUGS = [
    Bug(
        "a slot and its pages go back while a launched step still names them",
        SCHEDULER,
        "if request.in_flight or request.slot is None:",
        "if request.slot is None:",
    ),
    Bug(
        "a twin's duplicate pages are shared while it runs",
        SCHEDULER,
        "if self.pool.knows(path, request.tokens[at * size : (at + 1) * size]):",
        "if False:",
    ),
    Bug(
        "admission forgets the cached pages it pins",
        LEDGER,
        "return fresh, len(self._to_pin(shared))",
        "return fresh, 0",
    ),
    Bug(
        "the whole prompt is matched, so nothing is left to compute",
        SCHEDULER,
        "(len(request.tokens) - 1) // self.limits.page_size",
        "len(request.tokens) // self.limits.page_size",
    ),
    Bug(
        "a split cuts at the wrong token",
        RADIX,
        "cut, parent = n * self.page_size, node.parent",
        "cut, parent = n, node.parent",
    ),
    Bug(
        "pages are evicted that requests hold",
        RADIX,
        "len(gone) < n and counts[node.pages[-1]] == 1:",
        "len(gone) < n and counts[node.pages[-1]] >= 1:",
    ),
    Bug(
        "nothing is promised to running requests",
        SCHEDULER,
        "return self.pool.num_free + self.pool.num_evictable - self._promised",
        "return self.pool.num_free + self.pool.num_evictable",
    ),
    Bug(
        "a radix value goes stale: a split leaves the index on the lower half",
        RADIX,
        "for page in upper.pages:\n            self._home[page] = upper",
        "for page in upper.pages[1:]:\n            self._home[page] = upper",
    ),
    Bug(
        "a leaf that grows does not index its new pages",
        RADIX,
        "for page in new:\n                self._home[page] = node",
        "for page in new[:1]:\n                self._home[page] = node",
    ),
    Bug(
        "a released leaf is not queued for eviction",
        RADIX,
        "if node.pages[-1] == page and not node.children:\n            self._enqueue(node)",
        "if node.pages[-1] == page and not node.children and node.parent is None:\n"
        "            self._enqueue(node)",
    ),
    Bug(
        "what was used again is evicted at its old age",
        RADIX,
        "if used != node.last_used:",
        "if used > node.last_used:",
    ),
    Bug(
        "a slot leaks after an abort",
        SCHEDULER,
        "self._free_slots.append(request.slot)",
        'if request.finish != "abort":\n            self._free_slots.append(request.slot)',
    ),
    Bug(
        "the position after a cache hit is wrong",
        SCHEDULER,
        "request.scheduled = len(shared) * self.limits.page_size\n        if not",
        "request.scheduled = max(0, len(shared) * self.limits.page_size - 1)\n        if not",
    ),
    Bug(
        "a page is kept through a preemption",
        SCHEDULER,
        "self.pool.drop(request.pages)\n",
        "self.pool.drop(request.pages[request.preempting :])\n",
    ),
    Bug(
        "a preempted request keeps its place in the device tables",
        SCHEDULER,
        "request.scheduled = request.prefill_end = 0",
        "request.prefill_end = 0",
    ),
    Bug(
        "a plan is half applied before it is refused",
        SCHEDULER,
        "        matches = validate(plan, self)\n"
        "        events: list[Event] = []\n"
        "        for rid in plan.preempt:\n"
        "            events += self._preempt(self.running[rid])\n",
        "        events: list[Event] = []\n"
        "        for rid in plan.preempt:\n"
        "            events += self._preempt(self.running[rid])\n"
        "        matches = validate(plan, self)\n",
    ),
    Bug(
        "an aborted request's promise is kept",
        SCHEDULER,
        "request.finish = reason\n        self._void_promise(request)",
        'request.finish = reason\n        if reason != "abort":\n'
        "            self._void_promise(request)",
    ),
    Bug(
        "generated tokens beyond the last known one enter the cache",
        SCHEDULER,
        "end = min(request.scheduled, len(request.tokens)) // size",
        "end = min(request.scheduled, len(request.tokens) + 1) // size",
    ),
    Bug(
        "the first row of a request does not name the pages it shares",
        SCHEDULER,
        "first = 0 if admitted else old",
        "first = old",
    ),
    Bug(
        "prompts that share a prefix in progress compute it twice",
        LEDGER,
        "if key is not None and key in self._computing:",
        "if key is not None and not self._computing:",
    ),
    Bug(
        "the prefix cache survives a failed step",
        SCHEDULER,
        "self.pool.forget_all()",
        "pass",
    ),
    Bug(
        "a large request is overtaken for ever",
        LEDGER,
        "self.closed = len(self._refusals) > failed",
        "self.closed = False",
    ),
    Bug(
        "a zombie row's token is kept",
        SCHEDULER,
        "            if request.finish is None:\n                reason =",
        "            if request.finish in (None, 'stop'):\n                reason =",
    ),
    Bug(
        "steps launched before a request came count as waited in the lanes",
        "minisgl/inspector/figures/life.py",
        "found[rid] = Life(rid, arrival, True)",
        "found[rid] = Life(rid, step, True)",
        FIGURES,
    ),
    Bug(
        "the time to the first token begins before the request came",
        "minisgl/trace/frames.py",
        "planned.get(life.arrival)",
        "planned.get(life.added)",
        ("tests/trace/test_trace.py",),
    ),
    Bug(
        "a live run's inspector keeps every chunk for ever",
        "minisgl/inspector/run.py",
        "                self._chunks = None\n",
        "                pass\n",
        ("tests/inspector/test_widget.py",),
    ),
    Bug(
        "a film that is read anew numbers a policy's reasons anew",
        "minisgl/inspector/run.py",
        "self._film = Film(self.trace, like=self._film)",
        "self._film = Film(self.trace)",
        ("tests/inspector/test_widget.py",),
    ),
    Bug(
        "a policy's own reason is lost in a file",
        "minisgl/trace/file.py",
        "*([] if r.words is None else [r.words])",
        "*[]",
        ("tests/scheduler/test_policy.py",),
    ),
]

POLICY, TRAVEL = "minisgl/scheduler/policy.py", "minisgl/engine/travel.py"

BUGS += [
    Bug(
        "a queue does not age",
        POLICY,
        "old = request.preemptions or ledger.now - request.arrival >= PATIENCE",
        "old = request.preemptions",
    ),
    Bug(
        "prompts starve the decodes",
        POLICY,
        "return bool(ledger.decoding) and ledger.steps_without_decode >= TURN",
        "return False",
    ),
    Bug(
        "a snapshot takes a page for unchanged that was handed out again",
        TRAVEL,
        "if page not in base or base[page] != full.get(page)]",
        "if page not in base or page not in full]",
    ),
    Bug(
        "a rewind forgets what arrived before the next commit",
        "minisgl/trace/history.py",
        "                break\n            end += 1\n",
        "                break\n            break\n",
    ),
]
TORCH = ("tests/executor", "tests/attention", "tests/models")
FORWARD, GROUPED = "minisgl/executor/forward.py", "minisgl/attention/grouped.py"

BUGS += [
    Bug(
        "a decode feeds back another slot's token",
        FORWARD,
        "id_[fed_token] = tables.last[fed_slot]",
        "id_[fed_token] = tables.last[fed_slot.flip(0)]",
        TORCH,
    ),
    Bug(
        "keys land one position late in their page",
        FORWARD,
        "* size + position % size",
        "* size + (position + 1) % size",
        TORCH,
    ),
    Bug(
        "a decoding row sees the position after its own",
        GROUPED,
        "hidden = position >= self._ends",
        "hidden = position > self._ends",
        TORCH,
    ),
    Bug(
        "a sliding window is one position too wide",
        GROUPED,
        "hidden |= position < self._ends - window",
        "hidden |= position < self._ends - window - 1",
        TORCH,
    ),
    Bug(
        "four-bit codes lie in a word in the order of the outputs",
        "minisgl/kernel/int4.py",
        "(0, 4, 1, 5, 2, 6, 3, 7)",
        "(0, 1, 2, 3, 4, 5, 6, 7)",
        AWQ,
    ),
    Bug(
        "a rank reads the scales of the first groups",
        "minisgl/models/packing.py",
        "(whole, total), (groups.start, rows.start))",
        "(whole, total), (0, rows.start))",
        AWQ,
    ),
    Bug(
        "the last word of a group that fills it in part is read whole",
        "minisgl/kernel/csrc/int4.h",
        "if (k == count) break;",
        "",
        AWQ,
    ),
    Bug(
        "a factor is not taken out of the values",
        "minisgl/quantize/layer.py",
        "        qkv.divide_rows(value, self._per_value(of_heads))\n",
        "",
        AWQ,
    ),
    Bug(
        "a factor is not taken out of the bias of the up projection",
        "minisgl/quantize/fitting.py",
        "if probe.bias is not None:",
        "if probe.bias is None:",
        AWQ,
    ),
    Bug(
        "a norm is rounded and the matrix does not know",
        "minisgl/quantize/layer.py",
        "return torch.where(after == 0, 1.0, before / after)",
        "return factors",
        AWQ,
    ),
    Bug(
        "heads that share their values have factors of their own",
        "minisgl/quantize/layer.py",
        "heads.mean(1, keepdim=True).expand_as(heads).reshape(-1)",
        "heads.reshape(-1)",
        AWQ,
    ),
    Bug(
        "a grid may lack zero",
        "minisgl/quantize/grid.py",
        "weight.amin(2, keepdim=True).clamp_(max=0)",
        "weight.amin(2, keepdim=True)",
        AWQ,
    ),
    Bug(
        "a run that goes on begins with the hidden states of the first layer",
        "minisgl/quantize/work.py",
        'return load_file(self._states)["hidden"] if self.num_done else None',
        "return None",
        AWQ,
    ),
    Bug(
        "a chunk is used before its copies are waited for",
        MARLIN,
        "wait_for_copies<kStages - 2>();",
        "wait_for_copies<kStages - 1>();",
        EMULATED,
    ),
    Bug(
        "a warp's chunk is used before its copies are waited for",
        MARLIN,
        "wait_for_copies<Of::kStages - 1>();",
        "wait_for_copies<Of::kStages>();",
        EMULATED,
    ),
    Bug(
        "a chunk is used before other threads' copies are there",
        MARLIN,
        "__syncthreads();  // everybody's copies",
        "// everybody's copies",
        EMULATED,
    ),
    Bug(
        "a chunk is fetched over one that is still used",
        MARLIN,
        "% kStages * Of::kStage + my_place",
        "% (kStages - 1) * Of::kStage + my_place",
        EMULATED,
    ),
    Bug(
        "sums of a strip are overwritten by those of the next",
        MARLIN,
        "turn ^= 1;",
        "turn ^= 0;",
        EMULATED,
    ),
    Bug(
        "a tile's last part is left out",
        MARLIN,
        "for (int b = b0; b <= b1; ++b) {",
        "for (int b = b0; b < b1; ++b) {",
        EMULATED,
    ),
    Bug(
        "arrivals are not counted from zero the next time",
        MARLIN,
        "p.arrived[number] = 0",
        "p.arrived[number] = 1",
        EMULATED,
    ),
    Bug(
        "tokens that do not exist are written",
        MARLIN,
        "strip < strips ? p.tokens - above : 0",
        "strip < strips ? p.tokens - above + 1 : 0",
        EMULATED,
    ),
    Bug(
        "inputs lie elsewhere than they are looked for",
        MARLIN,
        "(my_piece ^ my_row % 2 * 4)",
        "my_piece",
        EMULATED,
    ),
    Bug(
        "sums keep the unit of the group before",
        MARLIN,
        "__fdividef(scales[r], to[r])",
        "__fdividef(to[r], to[r])",
        EMULATED,
    ),
    Bug(
        "outputs take their neighbours' scales",
        MARLIN,
        "*= factors[r / 2]",
        "*= factors[r % 2]",
        EMULATED,
    ),
    Bug(
        "outputs take their neighbours' zeros",
        MARLIN,
        "zeros[r % 2]",
        "zeros[r / 2]",
        EMULATED,
    ),
    Bug(
        "a warpgroup multiplies before other threads' inputs are there",
        MARLIN,
        "__syncthreads();  // everybody's inputs of the next",
        "// everybody's inputs of the next",
        EMULATED,
    ),
    Bug(
        "a warpgroup multiplies what it was not shown",
        MARLIN,
        "show_to_products();",
        "",
        EMULATED,
    ),
    Bug(
        "a warpgroup's chunk is used before its copies are waited for",
        MARLIN,
        "wait_for_copies<kDeep - 2>();",
        "wait_for_copies<kDeep - 1>();",
        EMULATED,
    ),
    Bug(
        "a warpgroup's chunk is fetched over one that is still used",
        MARLIN,
        "for (int i = 0; i < kDeep - 1; ++i) fetch_weights();",
        "for (int i = 0; i < kDeep; ++i) fetch_weights();",
        EMULATED,
    ),
    Bug(
        "weights are unpacked over those that are still multiplied",
        MARLIN,
        "wait_for_products<1>();  // those of the step",
        "wait_for_products<2>();  // those of the step",
        EMULATED,
    ),
    Bug(
        "sums change their unit while products go on",
        MARLIN,
        "wait_for_products<0>();\n            settle(total.of[0]);",
        "settle(total.of[0]);",
        EMULATED,
    ),
    Bug(
        "a warpgroup's last products are left out",
        MARLIN,
        "wait_for_products<0>();\n    settle(total.of[0]);",
        "settle(total.of[0]);",
        EMULATED,
    ),
    Bug(
        "inputs are stored over those that are still multiplied",
        MARLIN,
        "constexpr int kStages = 3;\n    static constexpr int kStage = kPieces * kTokens;",
        "constexpr int kStages = 1;\n    static constexpr int kStage = kPieces * kTokens;",
        EMULATED,
    ),
    Bug(
        "inputs of a warpgroup lie elsewhere than they are looked for",
        MARLIN,
        "write_for_products(row + kTokens * 4, coming[i].y);",
        "write_for_products(row + kTokens * 4, coming[i].z);",
        EMULATED,
    ),
    Bug(
        "a warpgroup takes tokens that do not exist",
        MARLIN,
        "tokens = min(p.tokens - above, kTokens);",
        "tokens = kTokens;",
        EMULATED,
    ),
    Bug(
        "sums are read before the cluster's other blocks wrote them",
        MARLIN,
        "cluster_barrier();\n    constexpr",
        "constexpr",
        EMULATED,
    ),
    Bug(
        "a block ends while its sums are read",
        MARLIN,
        "cluster_barrier();  // the others",
        "// the others",
        EMULATED,
    ),
    Bug(
        "a cluster's last block is left out of the sums",
        MARLIN,
        "if (b < sharers) {\n                sum.x",
        "if (b + 1 < sharers) {\n                sum.x",
        EMULATED,
    ),
    Bug(
        "a scale of zero is divided by",
        "minisgl/kernel/marlin.py",
        "weight = _without_zero_scales(weight)",
        "pass",
        EMULATED,
    ),
    Bug(
        "values are stored with the keys",
        "minisgl/kernel/csrc/cuda.cu",
        "(head < turned ? to.keys : to.values) +",
        "to.keys +",
        ("tests/kernel/test_cuda.py",),
    ),
    Bug(
        "a rotation takes another pair's frequency",
        "minisgl/kernel/csrc/cuda.cu",
        "frequencies[index % pairs]",
        "frequencies[index / 2 % pairs]",
        ("tests/kernel/test_cuda.py",),
    ),
    Bug(
        "a key's second half is stored over its first",
        "minisgl/kernel/csrc/cuda.cu",
        "write(copy + half, high);",
        "write(copy, high);",
        ("tests/kernel/test_cuda.py",),
    ),
    Bug(
        "a megakernel's sums lie where the next row comes",
        MEGA,
        "at.area + widest * Form::kBytes",
        "at.area + s.hidden * Form::kBytes",
        ONE_TOKEN,
    ),
    Bug(
        "a megakernel's layer hands its result over under its own stamp",
        MEGA,
        "stamp + (of == kDown)",
        "stamp",
        ONE_TOKEN,
    ),
    Bug(
        "a megakernel reads input rows as if they were not spread",
        MEGA,
        "return from + spread(word, product.inputs);",
        "return from + word;",
        ONE_TOKEN,
    ),
    Bug(
        "a megakernel forgets what it added to the residual stream",
        MEGA,
        "if (grows) number = at.own()[i] = ",
        "if (grows) number = ",
        ONE_TOKEN,
    ),
    Bug(
        "a megakernel's ring is filled while it is read",
        MEGA,
        "__syncwarp();  // everybody has read it",
        "",
        ONE_TOKEN,
    ),
    Bug(
        "a megakernel loses a part of a softmax that another block found",
        MEGA,
        "for (int i = threadIdx.x + kDim; i < kThreads; i += kDim) {",
        "for (int i = threadIdx.x + 2 * kDim; i < kThreads; i += kDim) {",
        ONE_TOKEN,
    ),
    Bug(
        "a megakernel takes the newest position from a block that does not have it",
        MEGA,
        "if (stop == end && from + i * kPass",
        "if (from + i * kPass",
        ONE_TOKEN,
    ),
    Bug(
        "a megakernel's chunks are counted to the tile before",
        MEGA,
        "((1 << 20) + chunks - 1) / chunks",
        "(1 << 20) / chunks",
        ONE_TOKEN,
    ),
    Bug(
        "a megakernel multiplies what lies behind a row",
        MEGA,
        "at < pieces ? x[at] : uint4{0, 0, 0, 0}",
        "x[at]",
        ONE_TOKEN,
    ),
    Bug(
        "a megakernel's four-bit weights have no zeros",
        MEGA,
        "sum -= static_cast<float>(rows[r] >> 16) * of.sum;",
        "",
        ONE_TOKEN,
    ),
    Bug(
        "a megakernel's whole numbers lose their last digit",
        MEGA,
        "to[4] = __byte_perm(even, odd, 0x5410) ^ 0x80808080u;",
        "to[4] = 0;",
        ONE_TOKEN,
    ),
    Bug(
        "a megakernel's whole numbers have a sign less",
        MEGA,
        "(275u - exponent) << 23",
        "(277u - exponent) << 23",
        ONE_TOKEN,
    ),
    Bug(
        "a megakernel takes what is no number for a large one",
        MEGA,
        "exponent < 255u ? (exponent - 21u) << 23 : 0x7fffffffu",
        "(exponent - 21u) << 23",
        ONE_TOKEN,
    ),
    Bug(
        "a megakernel's row is overwritten while it is normalised",
        MEGA,
        "at.raw = at.area + (Form::kPart > 0 ? s.hidden * Form::kBytes : 0);",
        "at.raw = at.area;",
        ONE_TOKEN,
    ),
    Bug(
        "a megakernel's attention uses the memory of sums that are not added up",
        MEGA,
        "meet();  // sums of the product before this are used",
        "",
        ONE_TOKEN,
    ),
    Bug(
        "decode attention multiplies what lies behind a row by 0",
        DECODE,
        "clear_behind(stage, of_.ends[row_] - position);",
        "",
        DECODE_STEPS,
    ),
    Bug(
        "decode attention's pages are fetched over those that are read",
        DECODE,
        "wait_for(empty + stage, turn);",
        "",
        DECODE_STEPS,
    ),
    Bug(
        "decode attention fetches the newest key before it is stored",
        DECODE,
        "if (last && !waited) {",
        "if (false) {",
        DECODE_STEPS,
    ),
    Bug(
        "decode attention of many rows and heads asks for more memory than a block has",
        "minisgl/kernel/csrc/decode.cu",
        "&& at.end <= most) return",
        ") return",
        DECODE_STEPS,
    ),
    Bug(
        "decode attention's parts of two rows have one place",
        DECODE,
        "2 * of_.share + (of_.begin <= first)",
        "2 * of_.share",
        DECODE_STEPS,
    ),
    Bug(
        "decode attention's parts are merged twice where they are few",
        DECODE,
        "const bool there = begin + at <= to;",
        "const bool there = true;",
        DECODE_STEPS,
    ),
    Bug(
        "decode attention forgets the window in a row's first tile",
        DECODE,
        "step_.window > 0 && tile == of_.first[row_]",
        "false",
        DECODE_STEPS,
    ),
    Bug(
        "chunks of many tokens are fetched over what is still multiplied",
        MANY,
        "wait_for(empty + stage, turn);",
        "",
        MANY_TOKENS,
    ),
    Bug(
        "of many tokens what is still multiplied is given back",
        MANY,
        "wait_for_products<1>();\n            if (chunk > first)",
        "wait_for_products<2>();\n            if (chunk > first)",
        MANY_TOKENS,
    ),
    Bug(
        "a tile of many tokens leaves out its last part",
        MANY,
        "if (i < p.parts) sum = plus",
        "if (i + 1 < p.parts) sum = plus",
        MANY_TOKENS,
    ),
    Bug(
        "a block ends while its cluster still reads the sums of many tokens",
        MANY,
        "if (p.parts > 1) cluster_barrier();  // the others may still read this block's",
        "",
        MANY_TOKENS,
    ),
    Bug(
        "of many tokens the gates' biases are added to what they gate",
        MANY,
        "p.bias, p.outputs + output",
        "p.bias, output",
        MANY_TOKENS,
    ),
    Bug(
        "of many tokens gates are fetched for what they gate, too",
        MANY,
        "across * units + i * p.outputs",
        "across * units",
        MANY_TOKENS,
    ),
    Bug(
        "gates that are no whole pieces are taken for many tokens",
        "minisgl/kernel/many.py",
        "% (16 if gated else 8)",
        "% 8",
        MANY_TOKENS,
    ),
    Bug(
        "a later GPU is given Hopper's products of many tokens",
        "minisgl/kernel/many.py",
        "if capability != WARPGROUPS:",
        "if capability < WARPGROUPS:",
        MANY_TOKENS,
    ),
    Bug(
        "many tokens are multiplied before their norm",
        "minisgl/kernel/cuda.py",
        "x, total = separate.norm(self",
        "_, total = separate.norm(self",
        MANY_TOKENS,
    ),
    Bug(
        "products of many tokens are compiled for a later GPU",
        "minisgl/build.py",
        "machine.capability != WARPGROUPS",
        "machine.capability < WARPGROUPS",
        ("tests/test_build.py",),
    ),
    Bug(
        "a norm forgets the last warp's sum",
        "minisgl/kernel/csrc/rows.cuh",
        "threadIdx.x % kWarp < warps ? scratch",
        "threadIdx.x % kWarp < warps - 1 ? scratch",
        ("tests/kernel/test_cuda.py",),
    ),
    Bug(
        "a short product reads past its row",
        "minisgl/kernel/csrc/product.cuh",
        "< end && at < pieces)",
        "< end && at <= pieces)",
        ("tests/kernel/test_cuda.py",),
    ),
    Bug(
        "a product forgets what the last warp of an output added up",
        "minisgl/kernel/csrc/product.cuh",
        "for (int p = 0; p < kSplit; ++p)",
        "for (int p = 0; p < kSplit - 1; ++p)",
        ("tests/kernel/test_cuda.py",),
    ),
    Bug(
        "an output begins with the sum of the one before",
        "minisgl/kernel/csrc/product.cuh",
        "sums[t][r] = 0.0f;",
        "sums[t][r] *= 1.0f;",
        ("tests/kernel/test_cuda.py",),
    ),
    Bug(
        "a block writes the sum over what others still read",
        "minisgl/kernel/few.py",
        "total = torch.empty_like(x)",
        "total = residual",
        ("tests/kernel/test_cuda.py",),
    ),
    Bug(
        "rows that do not fit shared memory are sent there",
        "minisgl/kernel/few.py",
        "if n * row <= _LARGEST_INPUT",
        "if n > 0",
        ("tests/kernel/test_cuda.py",),
    ),
    Bug(
        "a padded row's page is not written",
        "minisgl/kernel/csrc/cuda.cu",
        "if (entry >= 0) table[entry]",
        "if (entry > 0) table[entry]",
        ("tests/kernel/test_cuda.py",),
    ),
    Bug(
        "a value fills a register by being added to zero",
        "minisgl/kernel/csrc/vec.h",
        "return x - Vec{};",
        "return Vec{} + x;",
        ("tests/kernel/test_compile.py",),
    ),
    Bug(
        "KV pages come in the system's large pages",
        "minisgl/executor/kv_pool.py",
        "mmap.MADV_NOHUGEPAGE",
        "mmap.MADV_HUGEPAGE",
        ("tests/executor/test_kv_pool.py",),
    ),
]


SAMPLING = ("tests/executor/test_sampler.py", "tests/test_sampled_tokens.py")
SAMPLER, STOPS = "minisgl/executor/sampler.py", "minisgl/engine/stops.py"

BUGS += [
    Bug(
        "a row's noise depends on its place in the batch",
        SAMPLER,
        "return gumbel(keys, ids)",
        "return gumbel(keys.sort().values, ids)",
        SAMPLING,
    ),
    Bug(
        "the sign bit runs into the noise",
        "minisgl/executor/noise.py",
        "(state >> shift) & ((1 << (64 - shift)) - 1)",
        "(state >> shift)",
        SAMPLING,
    ),
    Bug(
        "the nucleus is taken before top_k",
        SAMPLER,
        "total = torch.where(top_k <= n, inside.logsumexp(-1), total)",
        "pass",
        SAMPLING,
    ),
    Bug(
        "presence and frequency count the prompt too",
        "minisgl/executor/penalties.py",
        "past = torch.tensor(output,",
        "past = torch.tensor([*prompt, *output],",
        SAMPLING,
    ),
    Bug(
        "penalties forget their past at a snapshot",
        "minisgl/executor/tables.py",
        "self.penalties.copy_(other.penalties)",
        "pass",
        SAMPLING,
    ),
    Bug(
        "after a preemption penalties count the prompt alone",
        SCHEDULER,
        "history = tuple(tokens[:length]), tuple(tokens[length:])",
        "history = tuple(tokens[:length]), ()",
    ),
    Bug(
        "the output index starts again after a preemption",
        SCHEDULER,
        "max(0, end - length)",
        "max(0, end - request.prefill_end)",
    ),
    Bug(
        "logprobs of a prompt skip what the prefix cache holds",
        SCHEDULER,
        "if request.scores_prompt:\n            return []",
        "if request.scores_prompt and not self.pool.shares:\n            return []",
    ),
    Bug(
        "a chunk's last position has no prompt logprob",
        SCHEDULER,
        "tokens[start + 1 : min(end + 1, length)]",
        "tokens[start + 1 : min(end, length)]",
    ),
    Bug(
        "a zombie row's logprob is kept",
        SCHEDULER,
        "if score is not None and self.running[row.rid].finish is None:",
        "if score is not None:",
    ),
    Bug(
        "a stop string is found within one token only",
        STOPS,
        "self._tail = self._end(known)",
        'self._tail = ""',
    ),
    Bug(
        "of two stop strings that end together the shorter counts",
        STOPS,
        "sorted(found, reverse=True)",
        "sorted(found)",
    ),
    Bug(
        "text held back is never searched",
        STOPS,
        "text += self._stream.flush()",
        "pass",
    ),
    Bug(
        "after a rewind stop strings are forgotten",
        "minisgl/engine/engine.py",
        "            self._stops.watch(request)\n        before = {",
        "        before = {",
    ),
    Bug(
        "a notebook runs what a prompt says",
        "minisgl/display.py",
        "html.escape(visible(str(value)))",
        "visible(str(value))",
        ("tests/test_display.py", "tests/engine/test_card.py"),
    ),
    Bug(
        "a request's bar counts a cached prefix as computed",
        "minisgl/request.py",
        "reused = min(self.cached, done)",
        "reused = 0",
        ("tests/test_request.py",),
    ),
    Bug(
        "the inspector forgets that a twin's node was split when a request let go",
        "minisgl/inspector/film.py",
        "touched.update(pool.match(request.tokens, whole))",
        "pass",
        ("tests/inspector/test_film.py",),
    ),
    Bug(
        "the inspector keeps a node that lost its last page",
        "minisgl/inspector/film.py",
        "if before[1] not in (0, node):",
        "if False:",
        ("tests/inspector/test_film.py",),
    ),
    Bug(
        "a redacted film still says what was sampled",
        "minisgl/inspector/film.py",
        "values = [-1 if k == sampled else v for k, v in zip(kinds, values, strict=True)]",
        "pass",
        ("tests/inspector/test_film.py",),
    ),
    Bug(
        "a page's text can end its script",
        "minisgl/inspector/page.py",
        '.replace("<", "\\\\u003c")',
        "",
        ("tests/inspector/test_page.py",),
    ),
    Bug(
        "a viewer that is let in late is told from the beginning",
        "minisgl/server/watch.py",
        "tape.begin(engine.state())",
        "tape.begin(None)",
        ("tests/server/test_watch.py",),
    ),
    Bug(
        "a mailbox of a viewer that never reads grows",
        "minisgl/server/watch.py",
        "if self._size > _PENDING:",
        "if False:",
        ("tests/server/test_watch.py",),
    ),
    Bug(
        "after a rewind the inspector goes on with the old film",
        "minisgl/inspector/run.py",
        "new = trace.history is not film.history",
        "new = False",
        ("tests/inspector/test_widget.py",),
    ),
    Bug(
        "a request that is left out runs all the same",
        "minisgl/engine/follow.py",
        "if where[rid] < known:",
        "if False:",
        ("tests/engine/test_follow.py",),
    ),
    Bug(
        "a stream shows the beginning of a stop string",
        "minisgl/tokenizer/answer.py",
        "ready = max(0, len(self._held) - self._held_len)",
        "ready = len(self._held)",
        ("tests/test_llm.py",),
    ),
    Bug(
        "a request's time begins when the driver takes it",
        "minisgl/bench/drive.py",
        "self.arrived[due.place] = due.time if by_time else self._seconds()",
        "self.arrived[due.place] = self._seconds()",
        ("tests/bench/test_drive.py",),
    ),
    Bug(
        "a turn is sent before its answer is there",
        "minisgl/bench/drive.py",
        "if item.after is None:\n                self._enqueue",
        "if True:\n                self._enqueue",
        ("tests/bench/test_drive.py",),
    ),
    Bug(
        "a closed loop sends more than it may",
        "minisgl/bench/drive.py",
        "while self.due and self.due[0].time <= now and self.under_way < most:",
        "while self.due and self.due[0].time <= now:",
        ("tests/bench/test_drive.py",),
    ),
    Bug(
        "equal blocks of a recorded trace are not equal tokens",
        "minisgl/bench/recorded.py",
        'names, block = [f"{name} {b}" for b in entry.blocks]',
        'names, block = [f"{name} {i} {b}" for b in entry.blocks]',
        ("tests/bench/test_recorded.py",),
    ),
    Bug(
        "arms run in the same order every time",
        "minisgl/bench/arms.py",
        "for arm in arms if replicate % 2 == 0 else reversed(arms):",
        "for arm in arms:",
        ("tests/bench/test_ablate.py",),
    ),
    Bug(
        "the interval is as narrow as if there were many runs",
        "minisgl/bench/effects.py",
        "tail = NormalDist().cdf(-sqrt(n / (n - 1)) * _student(1 - (1 - confidence) / 2, n - 1))",
        "tail = (1 - confidence) / 2",
        ("tests/bench/test_effects.py",),
    ),
    Bug(
        "runs are compared that were not made side by side",
        "minisgl/bench/effects.py",
        "ratios = np.log(np.asarray(values, float)) - np.log(np.asarray(base, float))",
        "ratios = np.log(np.asarray(values, float)) - np.log(np.sort(np.asarray(base, float)))",
        ("tests/bench/test_effects.py",),
    ),
    Bug(
        "an interval that spans 1 is ranked",
        "minisgl/bench/effects.py",
        "if interval.low <= 1 <= interval.high:",
        "if interval.low == 1 == interval.high:",
        ("tests/bench/test_effects.py",),
    ),
    Bug(
        "other tokens in an arm go unnoticed",
        "minisgl/bench/ablate.py",
        "        if a != b:\n",
        "        if len(a) != len(b):\n",
        ("tests/bench/test_ablate.py",),
    ),
    Bug(
        "half a line of a journal is written on",
        "minisgl/bench/journal.py",
        "            os.truncate(self.path, good)\n",
        "",
        ("tests/bench/test_ablate.py",),
    ),
    Bug(
        "a request that runs is blamed by those who wait",
        "minisgl/trace/explain.py",
        " if refusal.why not in _OF_RUNNING]",
        "]",
        ("tests/trace",),
    ),
    Bug(
        "a figure shows the row of an aborted request as if its token had come",
        "minisgl/inspector/figures/life.py",
        """over.update([rid] if reason == "abort" else [])""",
        "pass",
        FIGURES,
    ),
    Bug(
        "a figure counts what a preempted request found in the cache at first, not at last",
        "minisgl/inspector/figures/life.py",
        "if not request.preemptions:",
        "if True:",
        FIGURES,
    ),
    Bug(
        "a figure of a step is of the moment after its result",
        "minisgl/inspector/plot.py",
        "if state.step > step:",
        "if state.step > step and not state.in_flight:",
        FIGURES,
    ),
]

BUGS += [
    Bug(
        "time in which the host waits for a device counts as the host's work",
        "minisgl/trace/timeline.py",
        "work = _union((start, end) for start, end, name in spans if name != _WAIT)",
        "work = _union((start, end) for start, end, name in spans)",
        ("tests/trace/test_timeline.py",),
    ),
    Bug(
        "host work hides only behind the batches of its own step",
        "minisgl/trace/timeline.py",
        "every = _batches(records).values()",
        "every = _batches(_chosen(records, steps)).values()",
        ("tests/trace/test_timeline.py",),
    ),
    Bug(
        "a page that was reused is said to be computed by who reused it",
        "minisgl/trace/provenance.py",
        "at = 0 if row.first_page else shared.get(row.rid, 0)",
        "at = 0",
        ("tests/trace/test_reuse.py",),
    ),
    Bug(
        "what a failure emptied counts as evicted too early",
        "minisgl/trace/regret.py",
        "        self._lost.clear()\n",
        "",
        ("tests/trace/test_regret.py",),
    ),
    Bug(
        "a prompt that could not have been found counts as evicted too early",
        "minisgl/trace/regret.py",
        "{} if asks else self._missing(row.rid, shared)",
        "self._missing(row.rid, shared)",
        ("tests/trace/test_regret.py",),
    ),
    Bug(
        "devices that work side by side cost the sum of their times",
        "minisgl/trace/cost.py",
        "return max(lanes.values(), default=0.0)",
        "return sum(lanes.values())",
        ("tests/trace/test_reuse.py",),
    ),
    Bug(
        "a request whose result is dropped did not wait",
        "minisgl/trace/lives.py",
        "busy[row.rid] += life.over is None",
        "busy[row.rid] += 1",
        ("tests/trace/test_describe.py",),
    ),
    Bug(
        "two runs part where one reuses more, and it is not seen",
        "minisgl/trace/divergence.py",
        "return (one.start, one.length) == (other.start, other.length)",
        "return one.length == other.length",
        ("tests/trace/test_compare.py",),
    ),
    Bug(
        "a step is explained by the state after it",
        "minisgl/trace/divergence.py",
        "if isinstance(item, Plan) and state.step == step:",
        "if state.step > step:",
        ("tests/trace/test_compare.py",),
    ),
    Bug(
        "a replay of recorded lengths ends where the model likes",
        "minisgl/whatif.py",
        "        ignore_eos=True,\n",
        "",
        ("tests/test_whatif.py",),
    ),
    Bug(
        "a trace file may give a token to a row that samples none",
        "minisgl/trace/rebuild.py",
        "(token is not None) != row.emits",
        "(token is None) and row.emits",
        ("tests/trace/test_hostile_files.py",),
    ),
    Bug(
        "a trace file may compute the same for ever",
        "minisgl/trace/rebuild.py",
        "if self._room < 0:",
        "if False:",
        ("tests/trace/test_hostile_files.py",),
    ),
    Bug(
        "a miss-ratio curve counts pages as positions",
        "minisgl/bench/misses.py",
        "pages = max(1, pool // config.page_size)",
        "pages = pool",
        ("tests/bench/test_misses.py",),
    ),
    Bug(
        "what is asked for twice is not what is asked for again",
        "minisgl/bench/misses.py",
        "sum(n > 1 for n in counts)",
        "sum(n > 2 for n in counts)",
        ("tests/bench/test_misses.py",),
    ),
    Bug(
        "what could be chance is painted like a difference",
        "minisgl/bench/matrix.py",
        "if found.verdict not in COLOURS:",
        'if found.verdict == "equal":',
        ("tests/bench/test_matrix.py",),
    ),
    Bug(
        "the ranks after the first never hear which token was sampled",
        FORWARD,
        "tokens = self._group.broadcast(tokens)",
        "tokens = tokens.clone()",
        TP,
    ),
    Bug(
        "a rank holds a copy of another rank's key head",
        "minisgl/distributed/group.py",
        "head = group.rank * kv_heads // group.size",
        "head = group.rank % kv_heads",
        ("tests/models/test_tensor_parallel.py",),
    ),
    Bug(
        "what several ranks add is added by each",
        "minisgl/layers/linear.py",
        "y = self._group.all_reduce(self.matrix(x))",
        "y = self._group.all_reduce(self.matrix(x) + (0 if self.bias is None else self.bias))",
        ("tests/models/test_tensor_parallel.py",),
    ),
    Bug(
        "copies of key heads are not counted as memory",
        "minisgl/resolve.py",
        "held = model.kv_heads_of(out.tp) * (1 if on_gpu else out.tp)",
        "held = model.num_kv_heads // (out.tp if on_gpu else 1)",
        ("tests/test_resolve.py",),
    ),
    Bug(
        "a snapshot's pages go back in the order in which they were copied",
        "minisgl/executor/tp_runner.py",
        "parts.append(wire.Part(kept.number, pages, rows))",
        "parts.append(wire.Part(kept.number, pages, tuple(range(len(rows)))))",
        TP,
    ),
    Bug(
        "ranks keep what no snapshot names any more",
        "minisgl/executor/tp_runner.py",
        "        self._gone.append(self.number)",
        "        pass",
        TP,
    ),
    Bug(
        "closing one engine ends the processes that its fork computes in",
        RANKS,
        "            self._users -= 1\n            if self._users:\n                return",
        "            self._users -= 1",
        TP,
    ),
    Bug(
        "a notebook's interrupt reaches the workers",
        RANKS,
        "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})",
        "signal.pthread_sigmask(signal.SIG_BLOCK, set())",
        ("tests/executor/test_ranks.py",),
    ),
    Bug(
        "a dropped engine's workers live on",
        RANKS,
        'self._kill("the engine was dropped")',
        "pass",
        ("tests/executor/test_ranks.py",),
    ),
    Bug(
        "workers outlive an engine that was killed",
        "minisgl/executor/worker.py",
        "while os.getppid() == parent:",
        "while True:",
        ("tests/executor/test_ranks.py",),
    ),
    Bug(
        "an error does not say which rank was lost",
        RANKS,
        'self._kill(f"rank {rank} (process {process.pid}) {how}; {_WAY_OUT}")',
        'self._kill(f"{how}; {_WAY_OUT}")',
        ("tests/executor/test_ranks.py",),
    ),
    Bug(
        "a device's work begins before it was launched",
        "minisgl/executor/clock.py",
        "start = min(max(start, launched), seen - duration)",
        "start = min(start, seen - duration)",
        ("tests/executor/test_clock.py",),
    ),
    Bug(
        "a device's work lies wherever a late host saw its end",
        "minisgl/executor/clock.py",
        "min(start + self._moved, latest) if self._known else latest",
        "latest",
        ("tests/executor/test_clock.py",),
    ),
    Bug(
        "a device's clock that has stood still is believed",
        "minisgl/executor/clock.py",
        "            self._known = False\n",
        "            pass\n",
        ("tests/executor/test_clock.py",),
    ),
    Bug(
        "a padded row writes another slot's first page",
        "minisgl/kernel/paging.py",
        "flat[entry] = torch.where(entries >= 0, pages.int(), flat[own])",
        "flat[entry] = pages.int()",
        ("tests/kernel/test_paging.py",),
    ),
    Bug(
        "the last piece goes on beyond the stop string",
        "minisgl/tokenizer/answer.py",
        "rest = self._held + self._stream.feed(ids) + self._stream.flush()",
        "rest = self.feed(ids) + self._held + self._stream.flush()",
        ("tests/tokenizer/test_answer.py",),
    ),
    Bug(
        "a written state evicts in another order",
        RADIX,
        "known[above], age)",
        "known[above], 0)",
        ("tests/scheduler/test_state.py",),
    ),
    Bug(
        "a written state forgets who was preempted",
        "minisgl/scheduler/state.py",
        'setattr(request, name, value)\n    for name in ("clipped_from"',
        "setattr(request, name, value)\n    request.preemptions = 0\n"
        '    for name in ("clipped_from"',
        ("tests/scheduler/test_state.py", "tests/trace/test_record.py"),
    ),
    Bug(
        "a redacted recording misses the tokens that end a text",
        "minisgl/trace/redact.py",
        "if token in line.ends or rid in hits:",
        "if rid in hits:",
        ("tests/trace/test_record.py",),
    ),
    Bug(
        "a redacted recording has the same number for a token everywhere",
        "minisgl/trace/redact.py",
        "blake2b(self.before + token",
        "blake2b(token",
        ("tests/trace/test_record.py",),
    ),
    Bug(
        "a client that goes leaves its request running",
        "minisgl/server/desk.py",
        "if self._replies.pop(rid, None):\n                    self._send(Cancel(rid))",
        "self._replies.pop(rid, None)",
        ("tests/server/test_desk.py",),
    ),
    Bug(
        "several answers share one seed",
        "minisgl/server/tokenize.py",
        "if sampling.seed is None or n == 0:",
        "if True:",
        ("tests/server/test_stages.py",),
    ),
    Bug(
        "a paused engine steps on",
        "minisgl/server/generate.py",
        "self.paused, self.steps_allowed = True, 0",
        "self.paused, self.steps_allowed = True, 1",
        ("tests/server/test_stages.py",),
    ),
    Bug(
        "a bias counts in the row before",
        "minisgl/executor/sampler.py",
        "scores[where, which] += _floats(added)",
        "scores[where - 1, which] += _floats(added)",
        ("tests/executor/test_sampler.py",),
    ),
    Bug(
        "logprobs of a prompt come after its first token",
        "minisgl/server/generate.py",
        'isinstance(event, Sampled) or event.reason == "length"',
        'not isinstance(event, Sampled) and event.reason == "length"',
        ("tests/server/test_stages.py",),
    ),
    Bug(
        "a kernel belongs to the step in which it ran, not to that which launched it",
        PROFILER,
        '(None, None) if call is None else (marks.step(call["ts"]), call["ts"])',
        '(None, None) if call is None else (marks.step(event["ts"]), call["ts"])',
        PROFILED,
    ),
    Bug(
        "a mark's begin, not its middle, is tied to the host's clock",
        PROFILER,
        'at = (event["ts"] + event["dur"] / 2) * 1e-6',
        'at = event["ts"] * 1e-6',
        PROFILED,
    ),
    Bug(
        "operators that others call are counted too",
        PROFILER,
        'if start >= over.get(event["tid"], start):',
        "if start >= 0:",
        PROFILED,
    ),
    Bug(
        "of several anchors the first is taken, not the narrowest",
        "minisgl/executor/clock.py",
        "(min(some, key=lambda anchor: anchor.error) for some in (first, last))",
        "(next(iter(some)) for some in (first, last))",
        ("tests/executor/test_clock.py",),
    ),
    Bug(
        "a profile counts a graph beside its kernels",
        "minisgl/trace/profile.py",
        "tuple(span for span in self.spans if not span.lane.endswith(_GRAPHS))",
        "self.spans",
        ("tests/trace/test_profile.py",),
    ),
    Bug(
        "kernels that overlap are written to one thread",
        "minisgl/trace/chrome.py",
        "next((i for i, (_, until) in enumerate(taken) if until <= span.start), len(taken))",
        "0 if taken else len(taken)",
        ("tests/trace/test_profile.py",),
    ),
    Bug(
        "a head of any length is read",
        "minisgl/server/connection.py",
        "self._size > _MOST and",
        "self._size < 0 and",
        (f"{BOUNDS}::test_a_head_that_is_slow_long_or_none_is_refused_in_openais_form",),
    ),
    Bug(
        "who sends too much never sees why",
        "minisgl/server/guard.py",
        "most, most + _SPARE)",
        "most, most)",
        (f"{BOUNDS}::test_who_sends_much_too_much_is_told_so_while_he_sends",),
    ),
    Bug(
        "a second signal means nothing",
        "minisgl/server/launch.py",
        "0.0 if again else self._options.drain",
        "self._options.drain",
        (
            f"{FAULTS}::test_after_the_time_to_drain_or_a_second_signal_all_are_told"
            "_that_the_server_ends",
        ),
    ),
    Bug(
        "a bias of null is no bias",
        "minisgl/server/fields.py",
        'if name == "logit_bias" else',
        'if name == "" else',
        ("tests/server/test_refusals.py::test_a_wrong_field_is_a_400_that_names_it",),
    ),
    Bug(
        "the kernel for all layers leaves out the bias behind attention",
        DECODER,
        "if self._alone and not traits.o_bias and not traits.mlp_bias:",
        "if self._alone and not traits.mlp_bias:",
        DECODES,
    ),
    Bug(
        "the kernel for all layers leaves out the biases of an MLP",
        DECODER,
        "if self._alone and not traits.o_bias and not traits.mlp_bias:",
        "if self._alone and not traits.o_bias:",
        DECODES,
    ),
    Bug(
        "a rank takes the kernel for all layers, and sums its own part alone",
        DECODER,
        "if self._alone and not traits.o_bias and not traits.mlp_bias:",
        "if not traits.o_bias and not traits.mlp_bias:",
        DECODES,
    ),
    Bug(
        "the kernel for all layers sees behind a layer's window",
        DECODER,
        "layer.weights(w) for",
        "layer.weights(None) for",
        DECODES,
    ),
    Bug(
        "the kernel for all layers is made anew for each token",
        DECODER,
        "@cached_property\n    def _at_once",
        "@property\n    def _at_once",
        DECODES,
    ),
    Bug(
        "the residual stream behind all layers goes to the head without its norm",
        DECODER,
        "return self.norm(self._at_once(x, *rotation, memory.token), None)",
        "return self._at_once(x, *rotation, memory.token)",
        DECODES,
    ),
    Bug(
        "the kernel for one token is given a batch of two",
        "minisgl/attention/base.py",
        "self.device is None or len(self.locations) != 1:",
        "self.device is None or len(self.locations) > 2:",
        DECODES,
    ),
    Bug(
        "the kernel for all layers takes values for keys",
        "minisgl/executor/kv_pool.py",
        "[keys.data_ptr(), values.data_ptr()]",
        "[values.data_ptr(), keys.data_ptr()]",
        DECODES,
    ),
    Bug(
        "the two norms of a layer are handed over in the wrong order",
        MEGAKERNEL,
        "norms = layer.attention_norm, layer.mlp_norm, layer.head_norm",
        "norms = layer.mlp_norm, layer.attention_norm, layer.head_norm",
        (
            "tests/kernel/test_megakernel.py::test_calls_one_after_the_other_do_not_see_each_others_numbers",
        ),
    ),
    Bug(
        "one kernel reads matrices of several forms as if they were of one",
        MEGAKERNEL,
        "if group is None or groups:",
        "if group is None:",
        ("tests/kernel/test_megakernel.py::test_matrices_of_other_forms_are_computed_without",),
    ),
    Bug(
        "a GPU without bulk copies is said to have the kernel for all layers",
        "minisgl/resolve.py",
        'if hardware.capability < BULK_COPIES:\n        return f"it needs',
        'if hardware.capability < TENSOR_CORES:\n        return f"it needs',
        ("tests/test_resolve.py",),
    ),
    Bug(
        "the kernel for all layers is compiled although it is switched off",
        "minisgl/build.py",
        "if wanted.megakernel is False or",
        "if",
        ("tests/test_build.py",),
    ),
]

GREEDY = "minisgl/kernel/csrc/greedy.cuh"

BUGS += [
    Bug(
        "of equal logits a thread takes the last",
        GREEDY,
        "if (!(x <= value) && value == value) {",
        "if (!(x < value) && value == value) {",
        ("tests/kernel/test_cuda.py",),
    ),
    Bug(
        "of NaNs among logits a thread takes the last",
        GREEDY,
        "if (!(x <= value) && value == value) {",
        "if (!(x <= value)) {",
        ("tests/kernel/test_cuda.py",),
    ),
    Bug(
        "of equal logits of several threads the last is taken",
        GREEDY,
        "~static_cast<uint32_t>(x.at)",
        "static_cast<uint32_t>(x.at)",
        ("tests/kernel/test_cuda.py",),
    ),
    Bug(
        "a logit of -0 is less than one of 0",
        GREEDY,
        "__float_as_uint(x.value + 0.0f)",
        "__float_as_uint(x.value)",
        ("tests/kernel/test_cuda.py",),
    ),
    Bug(
        "logits behind the last whole piece are looked for before it",
        GREEDY,
        "i < before ? i : i + pieces * P::kSize",
        "i",
        ("tests/kernel/test_cuda.py",),
    ),
    Bug(
        "the first to choose among a row's logits leaves its best to the next",
        GREEDY,
        "contest->best = 0;",
        "",
        ("tests/kernel/test_cuda.py",),
    ),
    Bug(
        "the blocks that chose a token are not counted anew",
        GREEDY,
        "contest->there = 0;",
        "",
        ("tests/kernel/test_cuda.py",),
    ),
    Bug(
        "a greedy token is remembered by its row's number",
        GREEDY,
        "last[slots[row]] = token;",
        "last[row] = token;",
        ("tests/kernel/test_cuda.py",),
    ),
]


def copy_of_the_project(folder: Path) -> None:
    """Package, tests and settings; model files are linked."""
    ignore = shutil.ignore_patterns("__pycache__", ".*", "model")
    for part in ("minisgl", "tests"):
        shutil.copytree(ROOT / part, folder / part, ignore=ignore)
    model = ROOT / "minisgl" / "tiny" / "model"
    if model.exists():
        (folder / "minisgl" / "tiny" / "model").symlink_to(model)
    shutil.copy(ROOT / "pyproject.toml", folder)


def is_caught(bug: Bug, folder: Path) -> bool:
    """Plant the bug in the copy, run its tests, mend the copy again."""
    path = folder / bug.file
    text = path.read_text()
    if text.count(bug.right) != 1:
        raise ValueError(f"{bug.name}: its code stands {text.count(bug.right)} times in {bug.file}")
    path.write_text(text.replace(bug.right, bug.wrong))
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-cov", "-p", "no:cacheprovider"]
    environment = {**os.environ, "PYTHONPATH": str(folder), "CI": "true"}
    try:
        run = subprocess.run(
            [*command, *bug.tests], cwd=folder, env=environment, capture_output=True, timeout=600
        )
    finally:
        path.write_text(text)
    if run.returncode not in (0, 1):
        raise RuntimeError(f"{bug.name}: pytest itself failed\n{run.stdout.decode()[-2000:]}")
    return run.returncode == 1


def main(parts: list[str]) -> int:
    """Print what became of each bug; the number of those that nothing caught."""
    missed = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy_of_the_project(folder)
        for bug in BUGS:
            if parts and not any(part in bug.name for part in parts):
                continue
            caught = is_caught(bug, folder)
            missed += not caught
            print("caught" if caught else "MISSED", bug.name, flush=True)
    return missed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
