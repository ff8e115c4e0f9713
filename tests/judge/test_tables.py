"""Tables of many shapes give the same verdict; bad ones are explained at once, by name and row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas
import polars
import pytest
from click.testing import CliRunner

import paribus.judge
from paribus.cli.commands import commands
from paribus.errors import UserError
from paribus.judge import as_json, judge

ROWS = [
    ("base", 1, 3.0),
    ("base", 2, 3.2),
    ("base", 3, 3.1),
    ("new", 1, 2.5),
    ("new", 2, 2.72),
    ("new", 3, 2.6),
]
ASKED: dict[str, Any] = {"arm": "recipe", "metric": "loss", "baseline": "base"}


def csv_of(
    rows: list[tuple[Any, ...]], delimiter: str = ",", header: str = "recipe,seed,loss"
) -> str:
    lines = [header.replace(",", delimiter)]
    lines += [delimiter.join(str(cell) for cell in row) for row in rows]
    return "\n".join(lines) + "\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "results.csv"
    path.write_text(csv_of(ROWS))
    return path


def invoked(*arguments: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(commands, ["judge", *arguments])
    return done.exit_code, done.stdout, done.stderr


def refused(table: Any, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        judge(table, **(ASKED | options))
    return "\n".join(caught.value.problems)


def test_every_format_gives_the_same_verdict(file: Path, tmp_path: Path) -> None:
    frame = pandas.read_csv(file)
    paths = [
        tmp_path / name for name in ("a.tsv", "b.csv", "c.jsonl", "d.json", "e.parquet", "f.txt")
    ]
    paths[0].write_text(csv_of(ROWS, "\t"))
    paths[1].write_text(csv_of(ROWS, ";"), encoding="utf-8-sig")
    paths[2].write_text(frame.to_json(orient="records", lines=True))
    paths[3].write_text(frame.to_json(orient="records"))
    frame.to_parquet(paths[4])
    paths[5].write_text(csv_of(ROWS, "|"))
    expected = judge(file, **ASKED, pair_by="seed").comparisons
    mapping = {name: list(frame[name]) for name in frame}
    for table in (*paths, frame, polars.from_pandas(frame), mapping):
        assert judge(table, **ASKED, pair_by="seed").comparisons == expected


def test_the_package_is_the_function(file: Path) -> None:
    package: Any = paribus.judge
    assert package(file, **ASKED).comparisons == judge(file, **ASKED).comparisons


def test_a_wide_table_gives_the_same_verdict(file: Path) -> None:
    expected = judge(file, **ASKED, pair_by="seed").comparisons[0].estimate
    arms = {"seed": [1, 2, 3], "base": [3.0, 3.2, 3.1], "new": [2.5, 2.72, 2.6]}
    by_arm = judge(arms, arms_in="base,new", pair_by="seed", baseline="base")
    assert by_arm.comparisons[0].estimate == expected
    runs = {
        "recipe": ["base", "new"],
        "seed1": [3.0, 2.5],
        "seed2": [3.2, 2.72],
        "seed3": [3.1, 2.6],
    }
    by_run = judge(runs, arm="recipe", runs_in="seed*", baseline="base")
    assert by_run.comparisons[0].estimate == expected


def test_a_long_table_of_curves_counts_the_last_point_of_each_run() -> None:
    rows = []
    for arm, seed, last in ROWS:
        rows += [(arm, seed, 200, last), (arm, seed, 100, 9.0)]
    frame = pandas.DataFrame(rows, columns=["recipe", "seed", "step", "loss"])
    found = judge(frame, **ASKED, run="seed", step="step").comparisons[0]
    assert found.difference == pytest.approx(-0.4933, abs=1e-4)
    assert found.runs == 3


def test_seeds_match_whether_they_are_whole_numbers_or_floats() -> None:
    frame = pandas.DataFrame(ROWS, columns=["recipe", "seed", "loss"]).astype({"seed": object})
    frame.loc[0, "seed"] = "1.0"
    frame.loc[1, "seed"] = 2.0
    assert judge(frame, **ASKED, pair_by="seed").comparisons[0].estimate.pairs == 3


def test_names_in_any_script_and_several_columns_make_an_arm(tmp_path: Path) -> None:
    path = tmp_path / "ergebnisse.csv"
    rows = [
        ("Grundlage", "größe", 1, 3.0),
        ("Grundlage", "größe", 2, 3.1),
        ("新", "größe", 1, 2.0),
        ("新", "größe", 2, 2.2),
    ]
    path.write_text(csv_of(rows, header="Rezept,Maß,seed,Verlust"), encoding="utf-8")
    found = judge(path, arm=["Rezept", "Maß"], metric="Verlust", baseline="Grundlage größe")
    assert found.comparisons[0].arm == "新 größe"


def test_conditions_choose_rows(file: Path) -> None:
    file.write_text(file.read_text() + "other,1,9\nother,2,8\n")
    assert len(judge(file, **ASKED).comparisons) == 2
    assert len(judge(file, **ASKED, where="recipe!=other").comparisons) == 1


def test_thousands_of_arms_and_rows_are_judged(tmp_path: Path) -> None:
    rows = [
        (f"arm{arm}", seed, 3 + (arm * 7 + seed * 13) % 17 / 100)
        for arm in range(100)
        for seed in range(50)
    ]
    path = tmp_path / "many.csv"
    path.write_text(csv_of(rows))
    found = judge(path, arm="recipe", metric="loss", baseline="arm0", pair_by="seed")
    assert len(found.comparisons) == 99


BAD_CELLS = {
    "decimal comma": ("3,28", "comma"),
    "unit": ("3.1 nats", "unit"),
    "percent": ("31%", "unit"),
    "text": ("diverged", "no number"),
    "underscore": ("1_000", "no number"),
    "nan": ("nan", "missing or not a number"),
    "empty": ("", "missing or not a number"),
    "infinite": ("inf", "infinite"),
}


@pytest.mark.parametrize(("cell", "words"), BAD_CELLS.values(), ids=BAD_CELLS)
def test_a_result_that_is_no_number_is_named_with_its_line(
    tmp_path: Path, cell: str, words: str
) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(csv_of([*ROWS, ("new", 4, f'"{cell}"')]))
    said = refused(path)
    assert "line 8" in said
    assert words in said


def test_all_bad_rows_and_kinds_are_named_at_once(tmp_path: Path) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(
        csv_of([*ROWS, ("new", 4, "x"), ("", 5, 1.0), ("new", "", 2.0), ("new", 3, 2.0)])
    )
    said = refused(path, pair_by="seed")
    for expected in (
        "line 8",
        "line 9",
        "the arm has no name",
        "line 10",
        "no seed",
        "seed '3' 2 times",
    ):
        assert expected in said


def test_every_absent_column_is_named_with_the_nearest(file: Path) -> None:
    said = refused(file, arm="recipee", metric="los", pair_by="sead", block="machine")
    for expected in (
        "--arm",
        "did you mean recipe?",
        "did you mean loss?",
        "did you mean seed?",
        "there are: recipe, seed, loss",
    ):
        assert expected in said


def test_a_baseline_that_is_not_there_is_named(file: Path) -> None:
    assert "did you mean base?" in refused(file, baseline="bass")


def test_a_pairing_that_matches_nothing_is_refused(tmp_path: Path) -> None:
    frame = pandas.DataFrame(ROWS, columns=["recipe", "seed", "loss"])
    frame["seed"] = range(6)
    said = refused(frame, pair_by="seed")
    assert "none in common" in said
    assert "'base' has 0, 1, 2" in said


def test_a_run_that_contradicts_itself_is_refused() -> None:
    frame = pandas.DataFrame(ROWS + ROWS, columns=["recipe", "seed", "loss"])
    frame["step"] = 100
    frame.loc[6:, "loss"] += 1
    assert "two results at step 100" in refused(frame, run="seed", step="step")


def test_one_run_an_arm_is_refused_unless_a_noise_is_stated() -> None:
    frame = {"recipe": ["base", "new"], "loss": [3.0, 2.9]}
    assert "one run an arm" in refused(frame)
    assert judge(frame, **ASKED, noise=0.05).comparisons[0].verdict == "undecided"


BAD_FILES = {
    "empty": (b"", "empty"),
    "blank": (b" \n\n", "empty"),
    "header alone": (b"recipe,seed,loss\n", "no rows"),
    "ragged": (b"recipe,seed,loss\nbase,1,3,28\nnew,1\n", "line 2 has 4, line 3 has 2"),
    "decimal commas": (b"recipe,seed,loss\nbase,1,3,28\n", "decimal commas?"),
    "latin": ("recipe,seed,loss\nbäse,1,3\n".encode("latin-1"), "line 2 is not UTF-8"),
    "utf-16": ("recipe,seed,loss\nbase,1,3\n".encode("utf-16"), "UTF-16"),
    "binary": (bytes(range(256)) * 20, "NUL"),
    "open quote": (b'recipe,seed,loss\nbase,1,"3\n', "line 2"),
    "one long line": (b"x" * (2 << 20), "longer than"),
    "nul": (b"recipe,seed,loss\nbase,1,\x003\n", "NUL"),
    "two columns of one name": (b"recipe,loss,loss\nbase,1,2\n", "2 columns 'loss'"),
}


@pytest.mark.parametrize(("content", "words"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_bad_file_is_explained(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_bytes(content)
    assert words in refused(path)


def test_other_files_are_explained(tmp_path: Path) -> None:
    assert "a folder" in refused(tmp_path)
    assert "no such file" in refused(tmp_path / "none.csv")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and no more")
    assert "no sound parquet" in refused(tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text('{"recipe": "base"}\n{"recipe": \n')
    assert "line 2 is not JSON" in refused(tmp_path / "a.jsonl")
    (tmp_path / "a.xlsx").write_bytes(b"PK")
    assert "spreadsheet" in refused(tmp_path / "a.xlsx")
    pandas.DataFrame({"a": [1]}).to_parquet(tmp_path / "b.parquet")
    assert "no column 'recipe'" in refused(tmp_path / "b.parquet")
    assert "no table" in refused(7)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"baseline": None}, "--baseline"),
        ({"chain": True}, "leave --baseline out"),
        ({"smallest_effect": -1}, "not above 0"),
        ({"alpha": 0.9}, "--alpha"),
        ({"metric": "steps_to:3"}, "needs --curve"),
        ({"metric": "steps_to:low", "curve": "loss"}, "the target is no number"),
        ({"slope": 1.0}, "needs --horizon"),
        ({"where": "recipe"}, "COLUMN=VALUE"),
        ({"correction": "bonferoni"}, "expected one of holm"),
        ({"smalest_effect": 1}, "did you mean smallest_effect?"),
    ],
    ids=str,
)
def test_options_that_contradict_are_explained(
    file: Path, options: dict[str, Any], words: str
) -> None:
    assert words in refused(file, **options)


# ---------------------------------------------------------------- the command


def test_the_answer_comes_first_and_fits_80_columns(file: Path) -> None:
    long = "a-recipe-with-a-name-of-much-more-than-thirty-characters-and-an-end"
    file.write_text(file.read_text().replace("new", long))
    code, out, _ = invoked(str(file), "--arm", "recipe", "--metric", "loss", "--baseline", "base", "--fixed-sigma", "0.1",
                           "--target", "2.9", "--margin", "0.1", "--smallest-effect", "0.01")  # fmt: skip
    lines = out.splitlines()
    assert code == 0
    assert lines[0] == "loss (lower is better): of 1 arm, 1 better than base."
    assert max(len(line) for line in lines) <= 80


def test_json_has_every_figure(file: Path) -> None:
    code, out, _ = invoked(
        str(file), "--arm", "recipe", "--metric", "loss", "--baseline", "base", "--json"
    )
    found = json.loads(out)
    assert code == 0
    assert found == json.loads(json.dumps(as_json(judge(str(file), **ASKED))))
    assert found["comparisons"][0]["verdict"] == "better"


def test_the_page_begins_with_the_answer_and_needs_nothing_else(file: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    file.write_text(file.read_text().replace("new", "<script>new"))
    code, _, _ = invoked(
        str(file), "--arm", "recipe", "--metric", "loss", "--baseline", "base", "--html", str(page)
    )
    text = page.read_text()
    assert code == 0
    assert "<h1>loss (lower is better): of 1 arm, 1 better than base.</h1>" in text
    assert '<svg class="figure"' in text
    assert "<script>" not in text
    assert "http" not in text.replace("http://www.w3.org", "")


def test_bad_input_exits_with_2_and_without_a_traceback(file: Path) -> None:
    code, out, error = invoked(str(file), "--arm", "none", "--metric", "loss", "--baseline", "base")
    assert (code, out) == (2, "")
    assert error.startswith("paribus: --arm:")


def test_choices_of_the_command_are_those_of_the_function() -> None:
    from paribus.cli import judge as command
    from paribus.judge import options

    assert (command.CORRECTIONS, command.MISSING) == (options.CORRECTIONS, options.MISSING)


def curves(step: str = "step") -> pandas.DataFrame:
    """Two arms of three runs, each with a curve of four points."""
    rows = []
    for arm, seed, loss in ROWS:
        rows += [(arm, seed, at, loss + 100 / at) for at in (100, 200, 300, 400)]
    return pandas.DataFrame(rows, columns=["recipe", "seed", step, "loss"])


@pytest.mark.parametrize("column", ["step", "Epoch", "train/global_step"])
def test_points_of_curves_are_refused_where_nothing_says_what_a_run_is(column: str) -> None:
    said = refused(curves(column))
    assert f"4 values of {column}, from 100 to 400" in said
    assert "--rows-are-runs" in said


@pytest.mark.parametrize(
    "options",
    [{"rows_are_runs": True}, {"where": "step=400"}, {"step": "step", "run": "seed"}],
)
def test_a_user_says_what_the_rows_of_a_table_with_steps_are(options: dict[str, Any]) -> None:
    runs = 12 if "rows_are_runs" in options else 3
    assert [arm.runs for arm in judge(curves(), **ASKED, **options).arms] == [runs, runs]


def test_runs_that_ended_at_like_steps_are_runs() -> None:
    frame = pandas.DataFrame(ROWS, columns=["recipe", "seed", "loss"])
    frame["step"] = [3000, 3100, 3200] * 2
    assert judge(frame, **ASKED).comparisons[0].verdict == "better"
