"""The verdict's page: what it says of matched seeds, of undecided arms, of items; other people's text is no markup."""

from __future__ import annotations

import io
import sys
from dataclasses import replace
from typing import Any

import pytest
from support.ablation_file import parse
from support.results import result
from support.verdict_pages import arms_and_results, text_page

from paribus.pages import held_equal
from paribus.pages import verdict as verdict_page
from paribus.pages.markdown import cell, fenced, line, paragraph
from paribus.pages.noise import markdown as noise_markdown
from paribus.pages.verdict_answer import answer
from paribus.pages.verdict_origin import unequal_noise
from paribus.pages.verdict_sentences import caveat, say, sentence
from paribus.study.advice import Again, NextLook
from paribus.study.divergence import Survivors
from paribus.study.items import ItemEffect
from paribus.study.looks import Schedule
from paribus.study.noise_floor import noise_table
from paribus.study.outcomes import Outcomes
from paribus.study.sequence import Judged, Step
from paribus.study.statistics import Effect, effects, estimate
from paribus.study.verdict import ArmVerdict, verdicts

pytestmark = pytest.mark.usefixtures("in_checkout")


NOTHING, NO_LOOK = Outcomes([]), Judged({}, ())


def arms_of(experiment: Any) -> list[ArmVerdict]:
    return verdicts(experiment, NOTHING, {})


# ---------------------------------------------------------------- matched seeds


def test_what_arms_share_at_the_start_is_said_by_the_arm() -> None:
    """A tied head rescales the embedding, another width shares no tensor, another optimiser shares all."""
    arms = {
        "adamw": {"optimizer.kind": "adamw"},
        "wide": {"model.width": 64},
        "relu2": {"model.mlp": "relu2"},
        "tied": {"model.tied_head": True},
    }
    experiment = parse(arms=arms, equal="none")
    text = held_equal.shared_values(experiment, arms_of(experiment))
    shares = dict(
        one.rsplit(" ", 1)
        for one in text.partition("there: ")[2].split("; ")[0].replace(" %", "%").split(", ")
    )
    assert shares["adamw"] == "all"
    assert 0 < int(shares["relu2"].rstrip("%")) < 100
    assert 0 < int(shares["tied"].rstrip("%")) < 100
    assert shares["wide"] in ("none", *(f"{i}%" for i in range(1, 10)))
    alike = parse()
    assert held_equal.shared_values(alike, arms_of(alike)).startswith(
        "Every tensor of every arm begins with"
    )


def test_arms_of_other_rows_are_named() -> None:
    experiment = parse(
        arms={"packed": {"pretrain.packing": "best_fit"}, "adamw": {"optimizer.kind": "adamw"}}
    )
    text = held_equal.shared_rows(arms_of(experiment))
    assert "but for packed, whose rows are others" in text
    assert "adamw" not in text


# ---------------------------------------------------------------- the sentence


def effect_of(differences: list[float], plan: Schedule | None = None) -> Effect:
    return effects(
        {"adamw": differences}, direction="lower", smallest_effect=0.01, alpha=0.05, plan=plan
    )["adamw"]


def test_a_fixed_study_is_not_told_to_grow() -> None:
    text = sentence(parse(seeds=3), "adamw", effect_of([0.05, -0.04, 0.02]))
    assert "in a new study with fresh seeds" in text
    assert "raise its chance of a false verdict" in text
    assert "run " not in text


def test_a_new_study_is_named_by_its_commands_and_their_cost() -> None:
    """The undecided are never told to add seeds to a study that has no look left."""
    asked_again = Again("tiny", "tiny-2", 60.0, 0.01)
    effect = effect_of([0.05, -0.04, 0.02])
    text = sentence(parse(seeds=3), "adamw", effect, None, asked_again)
    assert effect.more_seeds is not None
    runs = 2 * (3 + effect.more_seeds)
    assert "`paribus ablate new tiny-2 --like tiny --arm adamw`" in text
    assert "`paribus ablate run tiny-2 --looks " in text
    assert f"at most about {runs} runs" in text
    assert f"{runs * 0.01:.2f} USD" in text


def test_an_arm_added_after_the_last_look_is_sent_to_a_new_study() -> None:
    effect = replace(effect_of([0.05, -0.04, 0.02]), verdict="not yet")
    asked_again = Again("tiny", "tiny-2", 60.0, 0.01)
    text = sentence(parse(seeds=3), "adamw", effect, None, asked_again)
    assert "no error rate to spend; a new study with fresh seeds can decide: " in text
    assert "`paribus ablate new tiny-2 --like tiny --arm adamw`" in text
    assert " USD)" in text


# ---------------------------------------------------------------- the first line


def rows(**verdicts: str) -> list[dict[str, Any]]:
    return [{"name": name, "verdict": word, "effect": None} for name, word in verdicts.items()]


def test_the_first_line_says_whether_the_hypothesis_held_and_names_the_baseline() -> None:
    held = answer(parse(expects={"adamw": "worse"}), rows(adamw="worse"))
    assert held.head == "The hypothesis held"
    assert held.sentence == "adamw is worse than the baseline (optimizer.kind: muon)."
    refuted = answer(parse(expects={"adamw": "worse"}), rows(adamw="equivalent"))
    assert refuted.head == "The hypothesis is refuted"
    assert refuted.against == ("adamw was expected to be worse, and is equivalent.",)
    unknown = answer(parse(expects={"adamw": "worse"}), rows(adamw="undecided"))
    assert unknown.head == "Not known yet"
    assert answer(parse(), rows(adamw="worse")).head == ""


def test_the_page_as_text_answers_in_one_sentence() -> None:
    text = text_page(*arms_and_results())
    assert "\n**Not known yet: adamw is worse than the baseline (" in text


def test_arms_of_one_verdict_share_a_clause() -> None:
    arms = {name: {"optimizer.matrix_lr": rate} for name, rate in (("a", 1e-2), ("b", 4e-2))}
    experiment = parse(arms=arms | {"c": {"optimizer.kind": "adamw"}}, equal="none")
    said = answer(experiment, rows(a="worse", b="worse", c="undecided")).sentence
    assert said.startswith("a and b are worse than the baseline (")
    assert said.endswith("; c is undecided.")
    together = answer(experiment, rows(a="better", b="better", c="better")).sentence
    assert together.startswith("All 3 arms (a, b and c) are better than the baseline")


def test_commands_in_a_sentence_are_code_and_nothing_of_it_is_markup() -> None:
    assert verdict_page.coded("run `a <b>` & go") == "run <code>a &lt;b&gt;</code> &amp; go"
    assert verdict_page.coded("a ` b") == "a ` b"


def test_advice_names_the_next_look_its_command_and_its_cost() -> None:
    coming = NextLook(5, "paribus ablate run tiny", 4, 7200.0, 1.5)
    undecided = effect_of([0.05, -0.04, 0.02], Schedule(3))
    text = sentence(parse(seeds="open"), "adamw", undecided, coming)
    assert "undecided" in text
    assert "next look is after 5 seeds: `paribus ablate run tiny`" in text
    assert "4 more runs" in text
    assert "2\u202fh 00\u202fmin" in text
    assert "1.50 USD" in text


def test_seeds_between_looks_are_an_estimate_and_no_verdict() -> None:
    early = estimate([-0.05, -0.051, -0.052, -0.05, -0.051, -0.0505], 0.05)
    coming = NextLook(8, "paribus ablate run tiny", 4, None, None)
    text = sentence(parse(seeds=8), "adamw", early, coming)
    assert text.startswith("adamw: not yet: −0.0507")
    assert "at any number of seeds" in text
    assert "better" not in text
    assert "after 8 seeds" in text


def test_differences_that_are_all_nothing_are_no_equality_and_no_number_of_seeds() -> None:
    text = sentence(parse(seeds=3), "adamw", effect_of([0.0, 0.0, 0.0]))
    assert "undecided" in text
    assert "does not show that they are equal" in text
    assert "more seeds" not in text


# ---------------------------------------------------------------- items


def test_the_noise_of_items_stands_beside_the_verdict_and_gives_none_of_its_own() -> None:
    (arm,) = arms_of(parse())[:1]
    item = ItemEffect(3, 400, 400, 0.02, 0.001, 0.039, 0.03, 0.01, 0.02, None)
    found = [replace(arm, items=item)]
    values = verdict_page.page_values(parse(), [], NOTHING, NO_LOOK, {}, [], found) | {
        "scaling": None
    }
    for text in (verdict_page.markdown(values, []), verdict_page.html(values, {})):
        table = text[text.rindex("By item") : text.rindex("Cost beside quality")]
        assert "better" not in table
        assert "from items" in table


# ---------------------------------------------------------------- other people's text


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "a | b | c",
        "[click](javascript:alert(1))",
        "![x](http://example.org/x.png)",
        "`code` *bold* _soft_ ~~gone~~ **x**",
        "&lt;b&gt; &#x3c;",
        "two\nlines\n\n# a heading",
        "\\<img src=x onerror=alert(1)>",
        "<!-- hidden -->",
    ],
)
def test_text_in_a_page_of_markdown_is_text(text: str) -> None:
    """Rendered by a Markdown library, each form shows the same words and makes no element of its own."""
    import re
    from html import unescape

    from markdown_it import MarkdownIt

    render = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render
    words = " ".join(text.split())
    for page in (f"- {line(text)}", paragraph(text), f"| a | b |\n| - | - |\n| {cell(text)} | x |"):
        html = render(page)
        tags = set(re.findall(r"<(\w+)", html))
        assert tags <= {"ul", "li", "p", "table", "thead", "tbody", "tr", "th", "td"}, html
        assert words in " ".join(unescape(re.sub(r"<[^>]*>", "", html)).split())


def test_what_needs_no_escape_stays_as_it_is() -> None:
    plain = "model.qk_norm: true → false, p < 0.0001 (95 % interval −0.1 to 0.2; lower is better)"
    assert line(plain) == plain == paragraph(plain)
    assert paragraph("- a list") == "\\- a list"
    assert paragraph("# one") == "\\# one"


def test_a_diff_cannot_leave_its_block() -> None:
    text = "-a\n```\n<script>\n+b"
    block = fenced(text, "diff").splitlines()
    assert block[0] == "````diff"
    assert block[-1] == "````"
    assert "\n".join(block[1:-1]) == text


def test_a_whole_page_of_markdown_holds_no_markup_of_the_file() -> None:
    bad = "<script>alert(1)</script> | `x` [y](z)"
    experiment = parse(question=bad, hypothesis=bad)
    found = arms_of(experiment)
    values = verdict_page.page_values(experiment, [], NOTHING, NO_LOOK, {bad: bad}, [bad], found)
    text = verdict_page.markdown(values | {"scaling": None, "diff": f"```\n{bad}"}, [])
    outside = text[: text.index("````diff")] + text[text.rindex("````") :]
    assert "<script" not in outside
    assert "[y](z)" not in outside
    assert "&lt;script>" in outside


# ---------------------------------------------------------------- noise


def test_the_noise_page_says_how_far_two_runs_lie_apart_for_its_number_of_seeds() -> None:
    """Three seeds measure a spread badly: 6.1 of it, where thirty say 2.9."""
    experiment = replace(parse(), profile="default")
    for seeds, factor in ((3, 6.085), (30, 2.892)):
        values = [float(i % 3) for i in range(seeds)]
        rows = noise_table({"val_bpb": values}, {"val_bpb": [0.5]})
        page = noise_markdown(experiment, rows, {"val_bpb": values})
        assert page.splitlines()[6].split(" | ")[-1].strip(" |") == f"{factor * rows[0].stdev:.2g}"


# ---------------------------------------------------------------- divergence


def test_runs_that_skipped_steps_or_have_no_value_are_named() -> None:
    experiment = parse(seeds=3)
    gone = replace(result("adamw", 7, None), diverged=True)
    back = result("adamw", 8, 1.0)
    measured = dict(back.metrics["pretrain"]) | {"rollbacks": 2, "nonfinite_steps": 1}
    back = replace(back, metrics={"pretrain": measured})
    notes = verdict_page.page_values(
        experiment, [], Outcomes([gone, back], {"adamw": [7]}), NO_LOOK, {}, [], arms_of(experiment)
    )["notes"]
    assert any("tiny.adamw.s7: its val_bpb is not finite: it diverged" in note for note in notes)
    assert any("2 rollbacks in pretrain, 1 step skipped in pretrain" in note for note in notes)


def test_an_arm_whose_values_spread_much_more_is_named() -> None:
    [arm] = arms_of(parse(seeds=3))
    wide = replace(arm, values=[1.0, 1.5, 0.6], baseline=[1.0, 1.02, 0.99])
    [note] = unequal_noise([wide])
    assert "values of adamw spread" in note
    assert "skewed" in note
    assert unequal_noise([replace(wide, values=[1.0, 1.03, 0.98])]) == []


def test_between_looks_divergence_is_counted_too() -> None:
    experiment = parse(seeds=8)
    early = estimate([-0.05, -0.051, -0.052], 0.05)
    [arm] = arms_of(experiment)
    text = caveat(replace(arm, effect=early, survivors=Survivors(2, 5, 0, 5)))
    assert text.startswith("adamw: not yet: adamw diverged 2 of 5, and no verdict rests")


# ---------------------------------------------------------------- arms that came later


def test_an_arm_that_was_added_later_is_shown_with_what_it_may_spend() -> None:
    arms = {"adamw": {"optimizer.kind": "adamw"}, "late": {"model.mlp": "gelu"}}
    experiment = parse(seeds="open", arms=arms)
    taken = (Step(3, 0.5, ("adamw",)),)
    assert verdict_page.late_arms(experiment, taken) == [
        "late was added after the look at 3 seeds, which left 50% of alpha: that is shared by all arms from there on"
    ]
    [spent] = verdict_page.late_arms(experiment, (Step(5, 1.0, ("adamw",)),))
    assert "no verdict" in spent
    assert verdict_page.late_arms(experiment, (Step(3, 0.5, ("adamw", "late")),)) == []


def test_a_terminal_breaks_sentences_between_words_and_never_within_a_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Screen()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("COLUMNS", "30")
    say("adamw: undecided: ask again: `paribus ablate new first-2 --like first`, commit the file")
    *lines, end = screen.getvalue().split("\n")
    assert end == ""
    assert "`paribus ablate new first-2 --like first`," in lines
    assert all(len(line) <= 30 for line in lines if "`" not in line)
