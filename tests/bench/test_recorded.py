"""Trace files of others: what they say is kept, what is none is named."""

from __future__ import annotations

import json
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import minisgl
from minisgl.bench import recorded
from minisgl.bench.recorded import read_azure, read_mooncake
from minisgl.bench.workload import Workload

HEAD = "TIMESTAMP,ContextTokens,GeneratedTokens"


def line(**changes: Any) -> str:
    fields = {"timestamp": 0, "input_length": 600, "output_length": 9, "hash_ids": [0, 1]}
    return json.dumps(fields | changes)


def test_the_excerpts_are_what_their_readme_says() -> None:
    mooncake, azure = read_mooncake(recorded.MOONCAKE), read_azure(recorded.AZURE)
    assert len(mooncake) == len(azure) == 400
    first = mooncake[0]
    assert (first.seconds, first.input_len, first.output_len) == (0, 6758, 500)
    assert mooncake[-1].seconds == 141
    assert azure[1].seconds == pytest.approx(4.3145790)
    assert azure[:1] == [recorded.Entry(0.0, 374, 44)]
    about = (recorded.AZURE.parent / "README.md").read_text()
    for word in ("400 of 12,031", "400 of 19,366", "Apache-2.0", "CC-BY", "kvcache-ai/Mooncake"):
        assert word in about


def test_equal_hash_ids_are_equal_tokens_and_different_ones_are_not() -> None:
    workload = Workload.from_mooncake(limit=60, max_len=None)
    entries = read_mooncake(recorded.MOONCAKE, 60)
    with minisgl.load("tiny", runner="hash") as engine:
        prompts: list[Any] = workload.prompts(engine)
    for i in range(60):
        for j in range(i):
            blocks = zip(entries[i].blocks or (), entries[j].blocks or (), strict=False)
            same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], blocks))
            tokens = zip(prompts[i], prompts[j], strict=False)
            begin = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], tokens))
            least = min(32 * same, len(prompts[i]), len(prompts[j]))
            assert least <= begin <= least + 3


def test_lengths_are_scaled_and_what_is_longer_than_allowed_is_cut_and_counted() -> None:
    entries = [recorded.Entry(0.0, 1600, 160, (0, 1, 2, 3)), recorded.Entry(1.0, 10, 4000, (0,))]
    items, cut = recorded.items(entries, "x", 0.1, None)
    assert [(item.prompt_len, item.output_len) for item in items] == [(160, 16), (1, 400)]
    assert cut == 0
    items, cut = recorded.items(entries, "x", 0.1, 100)
    assert [(item.prompt_len, item.output_len) for item in items] == [(84, 16), (1, 50)]
    assert cut == 2
    assert "2 cut to 100" in repr(Workload.from_mooncake(limit=2, max_len=100))


@given(
    lengths=st.lists(st.integers(1, 9000), min_size=1, max_size=5),
    scale=st.floats(0.001, 2),
    max_len=st.none() | st.integers(2, 3000),
)
def test_a_scaled_request_has_exactly_its_lengths(
    lengths: list[int], scale: float, max_len: int | None
) -> None:
    entries = [
        recorded.Entry(0.0, n, n, tuple(range(-(-n // 512))) if n % 2 else None) for n in lengths
    ]
    for n, item in zip(lengths, recorded.items(entries, "x", scale, max_len)[0], strict=True):
        want = max(1, round(n * scale))
        assert item.prompt_len is not None
        if max_len is None:
            assert (item.prompt_len, item.output_len) == (want, want)
        else:
            assert item.prompt_len + item.output_len <= max(max_len, 2)
            assert item.prompt_len <= want and item.output_len <= want


def test_requests_come_in_order_of_time_whatever_the_order_of_lines(tmp_path: Path) -> None:
    path = tmp_path / "late.jsonl"
    path.write_text("\n".join([line(timestamp=500), "", line(timestamp=2000, output_length=1)]))
    assert [e.seconds for e in read_mooncake(path)] == [0, 1.5]
    path.write_text("\n".join([line(timestamp=2000, output_length=1), line(timestamp=500)]))
    assert [(e.seconds, e.output_len) for e in read_mooncake(path)] == [(0, 9), (1.5, 1)]
    assert [e.output_len for e in read_mooncake(path, limit=1)] == [1]


def test_azure_times_are_read_in_all_their_forms(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    rows = "2024-05-10 00:00:00.5+00:00,1,2\n2024-05-10T01:00:01Z,3,4\n"
    path.write_bytes(("\ufeff" + HEAD + "\r\n" + rows.replace("\n", "\r\n")).encode())
    assert [e.seconds for e in read_azure(path)] == [0, 3600.5]
    path.write_text("GeneratedTokens,Kind,TIMESTAMP,ContextTokens\n5,x,2023-11-16 18:15:46,7\n")
    assert read_azure(path) == [recorded.Entry(0.0, 7, 5)]


HOSTILE_JSON = {
    line()[:-20]: "no JSON",
    "<html><body>404 Not Found</body></html>": "no JSON",
    "[1, 2]": "a JSON object is expected",
    "[" * 100_000: "no JSON",
    line(timestamp=float("nan")): "timestamp is nan",
    line(timestamp=float("inf")): "timestamp is inf",
    line(timestamp=-1): "timestamp is -1",
    line(timestamp="0"): "timestamp is '0', not a number",
    line(timestamp=None): "timestamp is None",
    line(timestamp=10**400): "timestamp is",
    line(input_length=-1): "input_length is -1; a prompt or answer has 0 to 10000000 tokens",
    line(input_length=10**12): "input_length is 1000000000000",
    line(input_length=600.0): "input_length is 600.0, not a number of tokens",
    line(input_length=True): "input_length is True",
    line(output_length=float("nan")): "output_length is nan",
    line().replace("output_length", "out"): "output_length is None",
    line(hash_ids=None): "hash_ids is None, not a list",
    line(hash_ids=["<script>", 2]): "hash_ids is .*script.*, not a list of whole numbers",
    line(hash_ids=[0]): "600 tokens in blocks of 512 have 2 hash_ids, here are 1",
    line(hash_ids=[-1, 2]): r"hash_ids is \[-1, 2\], not a list of whole numbers",
    '{"timestamp": 1' + "0" * 5000 + "}": "no JSON",
}


@pytest.mark.parametrize("bad", HOSTILE_JSON, ids=lambda text: text[:30])
def test_a_line_that_is_no_mooncake_request_is_named(bad: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(f"{line()}\n{bad}\n")
    with pytest.raises(ValueError, match=rf"bad\.jsonl, line 2: {HOSTILE_JSON[bad]}"):
        Workload.from_mooncake(path)
    assert len(Workload.from_mooncake(path, limit=1)) == 1, "what is not asked for is not read"


HOSTILE_CSV = {
    "2023-11-16 18:15:46,1": "3 columns are expected, here are 2",
    "2023-11-16 18:15:46,1,2,3": "3 columns are expected, here are 4",
    "yesterday,1,2": "TIMESTAMP is 'yesterday'",
    "2023-13-46 18:15:46,1,2": "TIMESTAMP is '2023-13-46 18:15:46': month must be in 1..12",
    "2023-11-16 18:15:46,nan,2": "ContextTokens is 'nan', not a number of tokens",
    "2023-11-16 18:15:46,-3,2": "ContextTokens is -3",
    "2023-11-16 18:15:46,1,1e9": "GeneratedTokens is '1e9'",
    "2023-11-16 18:15:46,1,999999999999": "GeneratedTokens is 999999999999",
    "2023-11-16 18:15:46,1,": "GeneratedTokens is ''",
    "2023-11-16 18:15:46Z,1,2": "its time zone is given",
    "<b>2023</b>,1,2": "TIMESTAMP is '<b>2023</b>'",
    '"2023-11-16,1,2': "no CSV",
}


@pytest.mark.parametrize("bad", HOSTILE_CSV)
def test_a_line_that_is_no_azure_request_is_named(bad: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(f"{HEAD}\n2023-11-16 18:15:45,1,2\n{bad}\n")
    with pytest.raises(ValueError, match=rf"bad\.csv, line 3: {HOSTILE_CSV[bad]}"):
        Workload.from_azure(path)


def test_files_that_are_something_else_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("")
    with pytest.raises(ValueError, match="x has no requests"):
        read_mooncake(path)
    with pytest.raises(ValueError, match="line 1: the columns .* TIMESTAMP is missing"):
        read_azure(path)
    path.write_text("time,prompt,answer\n")
    with pytest.raises(ValueError, match="line 1: the columns TIMESTAMP, ContextTokens, Gen"):
        read_azure(path)
    path.write_text(HEAD + "\n")
    with pytest.raises(ValueError, match="x has no requests"):
        read_azure(path)
    path.write_bytes(b"\x93NUMPY\xff\xfe")
    with pytest.raises(ValueError, match="line 1: no UTF-8 text"):
        read_mooncake(path)
    path.write_bytes(line().encode() + b"\n" + b" " * ((1 << 20) + 1) + b"\n")
    with pytest.raises(ValueError, match="line 2: it is longer than 1048576 bytes"):
        read_mooncake(path)
    with pytest.raises(FileNotFoundError):
        Workload.from_mooncake(tmp_path / "nothing")


@pytest.mark.parametrize("numbers", [{"scale": 0}, {"scale": float("nan")}, {"max_len": 1}])
def test_sizes_that_leave_nothing_are_refused(numbers: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Workload.from_azure(limit=3, **numbers)
    with pytest.raises(ValueError, match="limit must be at least 1"):
        Workload.from_azure(limit=0)


@given(text=st.binary(max_size=200))
def test_any_bytes_are_read_or_refused_by_name(
    text: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "any"
    for read, head in ((read_mooncake, b""), (read_azure, HEAD.encode() + b"\n")):
        path.write_bytes(head + text)
        try:
            assert read(path)
        except ValueError as error:
            assert "any" in str(error)
