"""YAML text that is no document, or would keep the parser busy."""

from __future__ import annotations

import time

import pytest

from mango.config.document import MAX_DEPTH, parse_document
from mango.errors import ConfigError


def test_brackets_up_to_the_bound_are_read() -> None:
    value = parse_document("a: " + "[" * MAX_DEPTH + "]" * MAX_DEPTH, "doc").data["a"]
    depth = 1
    while value:
        (value,) = value
        depth += 1
    assert depth == MAX_DEPTH
    assert parse_document("a: '" + "[{" * 500 + "'", "doc").data == {"a": "[{" * 500}


@pytest.mark.parametrize("opening", ["[", "{b: ", "[{"])
@pytest.mark.parametrize("count", [MAX_DEPTH + 1, 30_000])
def test_brackets_beyond_the_bound_are_refused_at_once(opening: str, count: int) -> None:
    start = time.process_time()
    with pytest.raises(ConfigError, match=rf"^doc:2 is not YAML: more than {MAX_DEPTH} brackets lie inside each other"):
        parse_document("x: 1\na: " + opening * count, "doc")
    assert time.process_time() - start < 2  # 5 s were not enough without the bound


def test_sections_that_lie_too_deep_are_refused() -> None:
    with pytest.raises(ConfigError, match="too deep inside each other"):
        parse_document("\n".join(" " * i + "b:" for i in range(450)), "doc")
