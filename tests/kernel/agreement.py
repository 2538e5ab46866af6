"""What must hold of the CUDA kernels, on a GPU and in the emulation of one: they agree with torch.

A module of tests has a class derived from ``KernelsAgree`` and imports ``pytest_generate_tests``.
"""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from minisgl.kernel.base import DecodeInputs, DecodeTables, Kernels, Place
from minisgl.kernel.plain import PlainKernels

BF16: dict[str, Any] = {"atol": 2e-2, "rtol": 2e-2}
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
NEAR = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-5}  # of a result's length


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each argument that ``values`` of the class names takes these values."""
    values: dict[str, list[Any]] = getattr(metafunc.cls, "values", {})
    for name in metafunc.fixturenames:
        if name in values:
            metafunc.parametrize(name, values[name], ids=str)


class NormedProductsAgree:
    """Products of a norm. Its module has a fixture ``kernels``."""

    device: ClassVar[str]
    values: ClassVar[dict[str, list[Any]]]

    def normal(self, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.randn(shape, device=self.device).to(dtype)

    @pytest.mark.parametrize("tokens", [1, 2, 3, 4])
    @pytest.mark.parametrize("later", [True, False], ids=["residual and bias", "neither"])
    def test_products_of_a_norm_agree(
        self, kernels: Kernels, tokens: int, sides: tuple[int, int], dtype: torch.dtype, later: bool
    ) -> None:
        torch.manual_seed(tokens)
        outputs, inputs = sides
        weight, x, norm = (self.normal(n, inputs, dtype=dtype) for n in (outputs, tokens, 1))
        bias = self.normal(outputs, dtype=dtype) if later else None
        residual = self.normal(tokens, inputs, dtype=dtype) if later else None
        total = x if residual is None else x + residual
        normed = PlainKernels().rms_norm(total, norm[0], 1e-3).double()
        exact = normed @ weight.double().t() + (0 if bias is None else bias.double())
        for some in (kernels, PlainKernels()):
            matrix = some.matrix(weight.clone(), bias, half=False, rows=False)
            given = x.clone(), None if residual is None else residual.clone()
            got, kept = some.normed_product(matrix, *given, norm[0], 1e-3)
            assert (got - exact).norm() < NEAR[dtype] * exact.norm()
            assert torch.equal(kept, total)


class ManyTokensAgree:
    """Products of many tokens. Its module has fixtures ``kernels`` and ``launched``, which lists
    the products that were launched since a test began: whether their rows were gates."""

    device: ClassVar[str]
    values: ClassVar[dict[str, list[Any]]]

    @pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
    @pytest.mark.parametrize("later", [True, False], ids=["residual and bias", "neither"])
    def test_products_of_many_tokens_agree(
        self,
        kernels: Kernels,
        launched: list[bool],
        tokens: int,
        sides: tuple[int, int],
        dtype: torch.dtype,
        gated: bool,
        later: bool,
    ) -> None:
        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, device=self.device).to(dtype)

        torch.manual_seed(tokens)
        outputs, inputs = sides
        x, norm = normal(tokens, inputs), normal(inputs)
        weight = (torch.randn(outputs, inputs, device=self.device) / inputs**0.5).to(dtype)
        bias, residual = (normal(outputs), normal(tokens, inputs)) if later else (None, None)
        total = x if residual is None else x + residual
        normed = PlainKernels().rms_norm(total, norm, 1e-3).double()
        exact = normed @ weight.double().t() + (0 if bias is None else bias.double())
        if gated:
            gate, up = exact.chunk(2, -1)
            exact = torch.nn.functional.silu(gate) * up
        for some in (kernels, PlainKernels()):
            matrix = some.matrix(weight.clone(), bias, half=False, rows=False)
            multiply = some.normed_gated_product if gated else some.normed_product
            given = x.clone(), None if residual is None else residual.clone()
            got, kept = multiply(matrix, *given, norm, 1e-3)
            assert (got - exact).norm() < NEAR[dtype] * exact.norm()
            assert torch.equal(kept, total)
        forms = [form for form in {gated, False} if self.is_ours(tokens, sides, form)]
        assert launched == sorted(forms)[-1:], "a gate in one kernel where there is one"

    def is_ours(self, tokens: int, sides: tuple[int, int], gated: bool) -> bool:
        """Whether no other product should be taken."""
        outputs, inputs = sides
        if outputs % (16 if gated else 8) or inputs % 8:
            return False
        return 5 <= tokens <= (128 if gated or outputs <= 2048 else 64)


class KernelsAgree(NormedProductsAgree):
    """Each kernel with its plain twin."""

    def test_norms_agree(self, kernels: Kernels, rows: int, size: int, dtype: torch.dtype) -> None:
        torch.manual_seed(size)
        x, residual, weight = (self.normal(n, size, dtype=dtype) for n in (rows, rows, 1))
        plain = PlainKernels()
        near: dict[str, Any] = {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else BF16
        ours, theirs = (k.rms_norm(x, weight[0], 1e-6) for k in (kernels, plain))
        torch.testing.assert_close(ours, theirs, **near)
        sums = residual.clone(), residual.clone()
        ours, theirs = (
            k.add_rms_norm(x, total, weight[0], 1e-6)
            for k, total in zip((kernels, plain), sums, strict=True)
        )
        torch.testing.assert_close(ours, theirs, **near)
        torch.testing.assert_close(*sums, atol=0, rtol=0)

    @pytest.mark.parametrize("tokens", [1, 2, 3, 4])
    @pytest.mark.parametrize("biased", [True, False], ids=["bias", "no bias"])
    def test_products_agree(
        self, kernels: Kernels, tokens: int, shape: tuple[int, int], biased: bool
    ) -> None:
        torch.manual_seed(tokens)
        weight, x = self.normal(*shape), self.normal(tokens, shape[1])
        bias = self.normal(shape[0]) if biased else None
        exact = x.double() @ weight.double().t() + (0 if bias is None else bias.double())
        for some in (kernels, PlainKernels()):
            got = some.matrix(weight, bias, half=False, rows=False)(x)
            assert (got - exact).norm() < 5e-3 * exact.norm()

    def test_silu_and_mul_agrees(self, kernels: Kernels, rows: int, inner: int) -> None:
        x = self.normal(rows, 2 * inner)
        ours, theirs = kernels.silu_and_mul(x), PlainKernels().silu_and_mul(x)
        torch.testing.assert_close(ours, theirs, **BF16)

    @pytest.mark.parametrize("pairs", [1, 12, 64, 130])
    def test_rotations_agree(
        self, kernels: Kernels, rows: int, pairs: int, dtype: torch.dtype
    ) -> None:
        positions = torch.randint(0, 131_072, (rows,), device=self.device)
        positions[0] = 0
        frequencies = 10_000.0 ** -torch.linspace(0, 1, pairs, device=self.device)
        ours = kernels.rotation(positions, frequencies, dtype)
        theirs = PlainKernels().rotation(positions, frequencies, dtype)
        for a, b in zip(ours, theirs, strict=True):
            assert a.shape == (rows, 1, pairs) and a.dtype == dtype and a.is_contiguous()
            close = 1e-6 if dtype == torch.float32 else NEAR[dtype] / 2
            torch.testing.assert_close(a, b, atol=close, rtol=close)

    @pytest.mark.parametrize("dim", [24, 64, 66, 80, 128, 256, 260])
    @pytest.mark.parametrize("normed", [True, False], ids=["normed", "as it is"])
    def test_heads_are_normalised_turned_and_stored_alike(
        self, kernels: Kernels, dim: int, normed: bool
    ) -> None:
        torch.manual_seed(dim)
        tokens, heads, kv_heads, device = 9, 4, 2, self.device
        wide = self.normal(tokens, heads + 2 * kv_heads + 1, dim)  # of a wider matrix
        weight = self.normal(heads + kv_heads, dim) if normed else None
        angle = torch.rand(tokens, 1, dim // 2, device=device) * 6
        turn = weight, 1e-6, angle.cos().bfloat16(), angle.sin().bfloat16()
        where = torch.randperm(30, device=device)[:tokens]
        made = []
        for some in (kernels, PlainKernels()):
            keys, values = torch.zeros(2, 30, kv_heads, dim, device=device).bfloat16()
            given = some.turn_and_store(wide.clone()[:, :-1], *turn, Place(keys, values, where))
            made.append((*given, keys, values))
        for ours, theirs in zip(*made, strict=True):
            torch.testing.assert_close(ours, theirs, atol=4e-2, rtol=2e-2)
        _, k, v, keys, values = made[0]
        assert torch.equal(keys[where], k) and torch.equal(values[where], v)
        assert torch.equal(v, wide[:, heads + kv_heads : -1])

    def test_decode_steps_are_laid_out_alike(self, kernels: Kernels) -> None:
        torch.manual_seed(0)
        slots, width, size, rows, device = 40, 30, 4, 24, self.device
        table = torch.randint(0, 999, (slots, width), dtype=torch.int32, device=device)
        last = torch.randint(0, 999, (slots,), device=device)
        packed = torch.zeros(5, rows, dtype=torch.int64, device=device)
        packed[0] = torch.randperm(slots - 1, device=device)[:rows] + 1
        packed[1] = torch.randint(0, width * size, (rows,), device=device)
        packed[2] = torch.where(torch.rand(rows, device=device) < 0.5, -1, 7)
        own = packed[0] * width + packed[1] // size
        packed[3] = torch.where(torch.rand(rows, device=device) < 0.5, own, -1)
        packed[:2, 0], packed[3, 0] = torch.tensor([0, 1], device=device), 0  # the very first entry
        packed[4] = torch.arange(rows, device=device) + 1000
        made = []
        for some in (kernels, PlainKernels()):
            tables = DecodeTables(table.clone(), last, size)
            wide = torch.zeros(3, rows, dtype=torch.int64, device=device)
            ends = torch.zeros(rows, dtype=torch.int32, device=device)
            pages = torch.zeros(rows, width, dtype=torch.int32, device=device)
            some.decode_inputs(
                packed.ravel(), tables, DecodeInputs(wide[0], wide[1], wide[2], ends, pages)
            )
            used = torch.arange(width, device=device) <= (packed[1] // size)[:, None]
            made.append((tables.pages, wide, ends, pages * used))
        assert all(torch.equal(a, b) for a, b in zip(*made, strict=True))

    def test_pages_are_flattened_alike(self, kernels: Kernels) -> None:
        pages = torch.randint(0, 999, (5, 7), dtype=torch.int32, device=self.device)
        first = torch.tensor([0, 3, 3, 10, 11, 18], dtype=torch.int32, device=self.device)
        out = [torch.zeros(19, dtype=torch.int32, device=self.device) for _ in range(2)]
        for into, some in zip(out, (kernels, PlainKernels()), strict=True):
            some.flatten_pages(pages, first, into)
        assert torch.equal(out[0][:18], out[1][:18])

    @pytest.mark.parametrize("kind", ["normal", "ties", "infinite", "NaN", "zeros"])
    def test_the_first_of_the_largest_is_chosen(
        self, kernels: Kernels, logits: tuple[int, int], dtype: torch.dtype, kind: str
    ) -> None:
        torch.manual_seed(logits[1])
        rows, size = logits
        wide = self.normal(rows, size + 3, dtype=dtype)  # rows begin anywhere
        if kind == "ties":
            wide = (2 * wide).round()
        elif kind == "infinite":
            wide[:] = -torch.inf
            wide[::2, size // 2] = torch.inf
        elif kind == "NaN":
            wide[:, 1 + size // 3 :: 5] = torch.nan
        elif kind == "zeros":
            wide = wide.sign() * 0  # below zero, too
        given = wide[:, 1:-2]
        slots = torch.randperm(rows + 5, device=self.device)[:rows]
        expected = torch.arange(rows + 5, device=self.device)
        last = expected.clone()
        ours = kernels.choose_greedy(given, slots, last)
        theirs = PlainKernels().choose_greedy(given, slots, expected)
        assert torch.equal(ours, theirs) and torch.equal(last, expected)
        again = kernels.choose_greedy(wide[:, :-3], slots, last)  # nothing is left of the first
        assert torch.equal(again, PlainKernels().choose_greedy(wide[:, :-3], slots, expected))
