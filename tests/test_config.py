"""The configuration: wrong values are named, what differs from the defaults is shown."""

from __future__ import annotations

from dataclasses import fields
from functools import partial
from typing import Any

import pytest

from minisgl.config import EngineConfig
from minisgl.registry import find, names
from tests.seen import Seen


@pytest.mark.parametrize(
    ("toggles", "error", "says"),
    [
        ({"page_size": 0}, ValueError, "page_size must be at least 1, got 0"),
        ({"page_size": "big"}, TypeError, "page_size must be an integer, got 'big'"),
        ({"num_pages": 1.5}, TypeError, "num_pages"),
        ({"num_pages": True}, TypeError, "num_pages"),
        ({"seed": -1}, ValueError, "seed must be at least 0, got -1"),
        ({"overlap": 1}, TypeError, "overlap must be True or False, got 1"),
        ({"policy": "fifo"}, ValueError, "policy must be one of .*prefill_first.*got 'fifo'"),
        ({"policy": 7}, TypeError, "policy"),
        ({"attention": "flash"}, ValueError, "attention must be one of"),
        ({"dtype": "int8"}, ValueError, "dtype must be one of"),
    ],
)
def test_a_wrong_value_is_refused_by_name(toggles: dict[str, Any], error: type, says: str) -> None:
    with pytest.raises(error, match=says):
        EngineConfig(**toggles)


def test_an_unknown_option_lists_the_known_ones() -> None:
    with pytest.raises(TypeError, match="no such option: pagesize; there are overlap, .*page_size"):
        EngineConfig().but(pagesize=4)


def test_sizes_are_known_only_once_resolved() -> None:
    with pytest.raises(ValueError, match="num_pages is still 'auto'"):
        _ = EngineConfig().limits


def test_a_configuration_shows_what_differs_and_explains_each_option() -> None:
    config = EngineConfig(overlap=False, num_pages=8)
    assert repr(config) == "EngineConfig(overlap=False, num_pages=8)"
    assert repr(EngineConfig()) == "EngineConfig()"


def test_a_policy_of_ones_own_is_shown_by_its_name_without_an_address() -> None:
    def mine(ledger: Any) -> Any: ...

    assert repr(EngineConfig(policy=mine)) == "EngineConfig(policy=mine)"
    assert repr(EngineConfig(policy=partial(mine))) == "EngineConfig(policy=partial)"
    assert EngineConfig(policy=mine).policy_name == "mine"
    assert EngineConfig(policy="mixed").policy_name == "mixed"


def test_a_notebook_shows_what_differs_from_the_default_and_what_it_means() -> None:
    seen = Seen(EngineConfig(overlap=False, num_pages=8)._repr_html_())
    assert f"2 options set, {len(fields(EngineConfig)) - 2} as by default" in seen.words
    means = EngineConfig.describe()
    assert seen.tables[0][1:] == [
        ["overlap", "False", "True", means["overlap"]],
        ["num_pages", "8", "'auto'", means["num_pages"]],
    ]
    assert "0 options set" in Seen(EngineConfig()._repr_html_()).words
    assert set(EngineConfig.describe()) == {option.name for option in fields(EngineConfig)}
    assert all(EngineConfig.describe().values())


@pytest.mark.parametrize("kind", ["policy", "prefix_cache", "attention"])
def test_choices_are_the_registered_names(kind: str) -> None:
    (option,) = (option for option in fields(EngineConfig) if option.name == kind)
    assert set(option.metadata["choices"]) - {"auto"} == set(names(kind))


def test_an_unregistered_name_lists_what_there_is() -> None:
    with pytest.raises(ValueError, match="unknown policy 'fifo'; there are prefill_first, mixed"):
        find("policy", "fifo")


@pytest.mark.parametrize(("value", "error"), [("yes", ValueError), (1, TypeError)])
def test_the_megakernel_is_auto_on_or_off(value: Any, error: type) -> None:
    with pytest.raises(error, match="megakernel must be one of"):
        EngineConfig(megakernel=value)
