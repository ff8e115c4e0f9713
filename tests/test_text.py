"""text.py: numbers in words."""

from paribus import text


def test_numbers_in_words() -> None:
    assert [
        text.quantity(value) for value in (3, 0.25, 65.13, 9_993.6, 12_300, 3_670_016, 2.1e12)
    ] == [
        "3",
        "0.25",
        "65.1",
        "9,994",
        "12.3\u202fk",
        "3.67\u202fM",
        "2.1\u202fT",
    ]
    assert [text.duration(value) for value in (12.3, 463.5, 7500, 360_000)] == [
        "12\u202fs",
        "7.7\u202fmin",
        "2\u202fh 05\u202fmin",
        "100\u202fh 00\u202fmin",
    ]
    assert text.number(-0.5, 2) == "−0.50"
    assert text.p_value(1e-9) == "p < 0.0001"
    assert text.percent(None) == "–"


def test_sizes_and_times_name_their_unit() -> None:
    assert [text.memory_size(value) for value in (2**10, 3 * 2**19, 3 * 2**29, 2**37)] == [
        "1 KiB",
        "1.5 MiB",
        "1.5 GiB",
        "128 GiB",
    ]
    assert [text.file_size(value) for value in (12, 1.5e3, 2.5e6, 1_234_567_890)] == [
        "12 bytes",
        "1.50 kB",
        "2.50 MB",
        "1.23 GB",
    ]
    assert [text.time_span(value) for value in (5.25, 90, 93_600, 864_000)] == [
        "5.2 s",
        "1.5 min",
        "26.0 h",
        "10.0 days",
    ]
    assert [text.clock(value) for value in (63, 3_723)] == ["1:03", "1:02:03"]


def test_a_share_is_never_rounded_to_nothing_or_all() -> None:
    assert [text.share(value) for value in (0, 0.001, 0.5, 0.999, 1)] == [
        "none",
        "1 %",
        "50 %",
        "99 %",
        "all",
    ]
