"""The final answer of a word problem: GSM8K's own rule for plain numbers, and never the number that a longer one begins with."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from paribus.data.answers import final_answer
from paribus.evaluate.gsm8k import score

USUAL = re.compile(r"#### (\-?[0-9\.\,]+)")  # grade-school-math's extract_answer, commas dropped


@pytest.mark.parametrize(
    ("given", "reference"),
    [
        ("1/2", "1"),
        ("1/2", "1/3"),
        ("3:30", "3"),
        ("10^3", "10"),
        ("10**3", "10"),
        ("10³", "10"),
        ("5-10", "5"),
        ("5 – 10", "5"),
        ("5 to 10", "5"),
        ("5 or 6", "5"),
        ("2e3", "2"),
        ("2 x 10^3", "2"),
        ("3½", "3"),
        ("3 1/2", "3"),
        ("3*4", "3"),
        ("5 + 3", "5"),
        ("12/25/2020", "12"),
        ("1.2.3", "1.2"),
        ("$5-$10", "5"),
        ("5√2", "5"),
        ("3h30", "3"),
        ("1 000", "1"),
        ("10^x", "10"),
        ("0x10", "0"),
        ("0b101", "0"),
        ("5 X 3", "5"),
        ("5 OR 6", "5"),
        ("5 & 6", "5"),
        ("5 times 3", "5"),
        ("5 plus 3", "5"),
        ("5 over 6", "5"),
        ("5 ½", "5"),
        ("½+½", "0.5"),
        ("(3)/(4)", "3"),
        ("(-5)^2", "-5"),
        (r"1\frac{1}{2}", "1"),
        (r"5\,000", "5"),
        ("5{,}000", "5"),
        ("1\u200b5", "1"),
        ("5°30'", "5"),
        ("3 hours 30 minutes", "3"),
        ("5 feet 3 inches", "5"),
        ("5 ft. 3 in", "5"),
        ("4 dollars and 50 cents", "4"),
        ("2 weeks, 3 days", "2"),
    ],
)
def test_a_longer_number_is_not_the_one_it_begins_with(given: str, reference: str) -> None:
    assert not score(f"#### {given}", f"#### {reference}").correct


@pytest.mark.parametrize(
    ("given", "number"),
    [
        ("\u22123", "-3"),
        ("\u20133", "-3"),
        ("+5", "5"),
        ("**5**", "5"),
        ("*5*", "5"),
        ("__5__", "5"),
        ("`5`", "5"),
        ("€5", "5"),
        ("£ 5", "5"),
        ("-€5", "-5"),
        ("US$5", "5"),
        ("USD 5", "5"),
        (r"\$5", "5"),
        (r"\boxed{5}", "5"),
        ("$$5$$", "5"),
        ("(5)", "5"),
        ("1 000", "1000"),
        ("1\u202f000\u202f000", "1000000"),
        ("1'000", "1000"),
        ("1/2", "0.5"),
        ("-1/4", "-0.25"),
        ("2/6", "1/3"),
        ("4/2", "2"),
        (r"\frac{3}{4}", "0.75"),
        ("½", "0.5"),
        ("3½", "3.5"),
        ("1 1/2", "1.5"),
        ("10^3", "1000"),
        ("10^{3}", "1000"),
        ("2e3", "2000"),
        ("5e-2", "0.05"),
        ("2×10³", "2000"),
        ("5\n- 3 apples", "5"),
        ("5 - cats", "5"),
        ("5/day", "5"),
        ("50%", "50"),
        ("= 5", "5"),
        (": 5", "5"),
        ("«5»", "5"),
        ("５", "5"),
        ("－１，２３４．５", "-1234.5"),
        ("\u200b5", "5"),
        ("\ufeff5", "5"),
        ("-**5**", "-5"),
        (r"\frac12", "0.5"),
        (r"1\frac{1}{2}", "1.5"),
        (r"5\,000", "5000"),
        ("5{,}000", "5000"),
        ("5 ½ cups", "5.5"),
        ("5 hours", "5"),
        ("5 days, 3 times", "5"),
        ("5 or so", "5"),
        ("5x", "5"),
        ("5 x", "5"),
    ],
)
def test_a_number_in_its_usual_dress_is_read(given: str, number: str) -> None:
    assert final_answer(f"#### {given}") == number
    assert score(f"#### {given}", f"#### {number}").correct


@pytest.mark.parametrize(
    "given", ["3:30", "1/0", "10^99999", "2^-99999999999", "x", "٣", "±5", "0x10"]
)
def test_what_is_no_number_is_none(given: str) -> None:
    assert final_answer(f"#### {given}") is None


def test_plain_numbers_are_read_as_by_the_usual_rule(shared_data: Path) -> None:
    for split in ("train", "test"):
        for line in (shared_data / f"gsm8k/{split}.jsonl").open(encoding="utf-8"):
            answer = json.loads(line)["answer"]
            usual = USUAL.search(answer)
            assert usual is not None
            assert final_answer(answer) == usual[1].replace(",", "")
    for plain in ("0", "-7", "1,234", "12,345,678", "3.25", "-0.5", "9" * 50, "18 apples", "5, 6"):
        usual = USUAL.search(f"#### {plain}")
        assert usual is not None
        assert final_answer(f"#### {plain}") == usual[1].replace(",", "")


def test_reading_takes_no_time_whatever_the_text() -> None:
    for text in ("#" * 100_000, "#### " * 20_000, "#### " + "1 " * 50_000, "#### " + "(" * 100_000):
        final_answer(text)
    for text in ("#### " + "-" * 100_000, "#### 5" + " " * 100_000 + "x", "#### " + "1," * 50_000):
        final_answer(text)
