"""A terminal recording: which screens it keeps, and what its drawing shows."""

from __future__ import annotations

from itertools import pairwise

from recording import Drawing, Screen, legible, starts


def test_screens_that_stay_too_short_are_left_out_and_the_last_one_stays() -> None:
    screens = [Screen(float(second), (f"second {second}",)) for second in range(601)]
    kept = legible(screens)
    assert kept[0] == screens[0]
    assert kept[-1] == screens[-1]
    shown = starts(kept)
    between = [after - before for before, after in pairwise(shown[:-1])]
    assert min(between) * 20 >= 0.25


def test_a_drawing_keeps_colors_and_escapes_what_would_be_markup() -> None:
    drawn = Drawing(40, 2).svg(
        [Screen(0.0, ("$ x",)), Screen(1.0, ("\x1b[32mdone\x1b[0m", "a < b"))], "x"
    )
    assert 'style="fill:#' in drawn
    assert "a &lt; b" in drawn
