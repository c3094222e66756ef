"""What people type is read alike everywhere: in a command, on the page and in a node."""

from __future__ import annotations

import re

import pytest

from vsf.grammar import did_you_mean, first_line, parse_numbers, parse_size, unknown
from vsf.guidance import blocks_text, parse_blocks


@pytest.mark.parametrize(
    ("text", "blocks"),
    [("", None), (" ALL ", None), (" 3 ", (3,)), ("5, 0-2,1", (0, 1, 2, 5)), ("7-7", (7,)), ("0+2-3,5", (0, 2, 3, 5))],
)
def test_blocks(text: str, blocks: tuple[int, ...] | None) -> None:
    assert parse_blocks(text) == blocks


@pytest.mark.parametrize("text", ["a", "3-", "1,,2", "-1", "1-2-3", "1++2", "0-9999999999", "²", "none", "1.5"])
def test_no_blocks(text: str) -> None:
    with pytest.raises(
        ValueError, match=f"--blocks is '{re.escape(text)}'; allowed: numbers and ranges such as 0-18,24, or all"
    ):
        parse_blocks(text, "--blocks")


@pytest.mark.parametrize("text", ["0", "0-18", "0-18,24", "3,5,7-9", "all"])
def test_the_text_of_blocks_is_read_as_these_blocks(text: str) -> None:
    assert blocks_text(parse_blocks(text)) == text


def test_a_range_backwards() -> None:
    with pytest.raises(ValueError, match="blocks is '0, 4-1'; the range 4-1 ends before it begins"):
        parse_blocks("0, 4-1")


@pytest.mark.parametrize(
    ("text", "size"), [("64", (64, 64)), ("1024x768", (1024, 768)), (" 8 X 16", (8, 16)), ("8×16", (8, 16))]
)
def test_size(text: str, size: tuple[int, int]) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "big", "8x", "8x8x8", "-8", "9" * 5000, "8.0"])
def test_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="the size is '.{0,40}'; allowed: a number of pixels such as 64, or WIDTHxH"):
        parse_size(text)


def test_the_nearest_name() -> None:
    assert did_you_mean("Vfs", ["nag", "vsf"]) == "; did you mean vsf?" and did_you_mean("x", ["nag", "vsf"]) == ""
    assert unknown("method", "vfs", ["nag", "vsf"]) == "unknown method 'vfs'; allowed: nag, vsf; did you mean vsf?"


def test_the_first_line_of_a_foreign_error() -> None:
    assert first_line(OSError("no file.\nlong story")) == "no file"
    assert first_line(OSError("none of:\na\nb\nc")) == "none of: a b"
    assert first_line(KeyError()) == "KeyError"


def test_numbers_come_in_the_order_given() -> None:
    assert parse_numbers("7, 0-1,5", "seeds", "0-3") == [7, 0, 1, 5]
    assert parse_numbers("9" * 15, "seeds", "0-3") == [10**15 - 1]
    for text in ("", "0-10000", "9" * 16):
        with pytest.raises(ValueError, match=f"seeds is '{text}'; allowed: numbers and ranges such as 0-3"):
            parse_numbers(text, "seeds", "0-3")
