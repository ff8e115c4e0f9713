"""Arms that are code: what is wrong with them is said before any compute, all at once, with what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.ablation_file import FILE
from support.ideas import append, branch, git, own_code

from paribus.cli.ablation_check import check
from paribus.errors import UserError
from paribus.study.arm_code import settle_code
from paribus.study.code_checks import code_lines, code_notes
from paribus.study.experiment import Experiment
from paribus.study.matching import matching
from paribus.study.reading import parse_experiment
from paribus.study.results import code_key
from paribus.study.specs import changes_of, pieces_of

LAYERS = "src/paribus/model/layers.py"
LOADER = "src/paribus/data/loader.py"
CHANGE = "\nIDEA = 1\n"
STAGES = ["corpus", "tokenizer", "tokens", "pretrain"]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory, project_root: Path) -> Path:
    return own_code(tmp_path_factory.mktemp("code") / "project", project_root)


@pytest.fixture
def checkout(start: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of paribus's own code, with no branch but main at its first commit."""
    monkeypatch.chdir(start)
    git("checkout", "-q", "main")
    git("reset", "-q", "--hard", git("rev-list", "--max-parents=0", "HEAD"))
    git("clean", "-qfd")
    for reference in git("for-each-ref", "--format=%(refname)").splitlines():
        if reference != "refs/heads/main":
            git("update-ref", "-d", reference)
    return start


def study(to_run: bool = True, **arms: Any) -> Experiment:
    return parse_experiment("idea", FILE | {"arms": arms}, to_run)


def problems(**arms: Any) -> list[str]:
    with pytest.raises(UserError) as found:
        study(**arms)
    return list(found.value.problems)


def test_an_arm_of_code_is_settled_and_shown(checkout: Path) -> None:
    commit = branch("ideas/layers", (LAYERS, CHANGE))
    experiment = study(layers={"code": "ideas/layers"})
    code = experiment.code("layers")
    assert code is not None
    assert code.commit == commit
    assert code_lines(experiment) == [
        f"layers: ideas/layers is {commit[:10]}, which changes 1 file, +2 −0 of what the stages run",
        f"    {LAYERS}  +2 −0",
    ]
    assert code_notes(experiment) == []


def test_every_unusable_name_is_named_at_once_with_the_nearest(checkout: Path) -> None:
    branch("ideas/layers", (LAYERS, CHANGE))
    found = problems(
        a={"code": "ideas/layer"},
        b={"code": "experiments/none.patch"},
        c={"code": 7},
        d={"code": "ideas/layers", "sett": {}},
        e={"code": "--all"},
    )
    text = "\n".join(found)
    assert "arms.a.code: 'ideas/layer': no branch, tag or commit here has this name" in text
    assert "did you mean ideas/layers?" in text
    assert "arms.b.code: 'experiments/none.patch': no such file" in text
    assert "arms.c.code: 7; expected a branch" in text
    assert "arms.d: 'sett': beside code there may be set" in text
    assert "arms.e.code: '--all': no branch" in text
    assert len(found) == 5


def test_arms_that_change_nothing_or_the_same_are_refused(checkout: Path) -> None:
    branch("prose", (LAYERS, "\n# prose\n"))
    branch("one", (LAYERS, CHANGE))
    branch("two", (LAYERS, CHANGE + "# the same\n"))
    found = problems(main={"code": "main"}, prose={"code": "prose"}, fine={"code": "one"})
    assert len(found) == 2
    assert "arms.main.code: main is the baseline's own commit" in found[0]
    assert "changes nothing that the stages run" in found[1]
    [found_twins] = problems(one={"code": "one"}, two={"code": "two"})
    assert "arms.two and arms.one have the same code and settings" in found_twins
    study(one={"code": "one"}, two={"code": "two", "set": {"model.qk_norm": False}})


def test_a_stale_branch_is_refused_where_what_it_lacks_decides_results(checkout: Path) -> None:
    branch("idea", (LAYERS, CHANGE))
    append("params.yaml", "# a remark\n")
    git("commit", "-qam", "prose")
    study(idea={"code": "idea"})
    append("src/paribus/model/gpt.py", CHANGE)
    git("commit", "-qam", "other code")
    [found] = problems(idea={"code": "idea"})
    assert (
        "idea lacks 2 commits that the baseline has, which change src/paribus/model/gpt.py" in found
    )
    assert "git rebase main idea" in found
    allowed = study(idea={"code": "idea", "as_one": "the layer, on the older model"})
    [note] = code_notes(allowed)
    assert "lacks 2 commits" in note
    assert "as_one allows it" in note


def test_an_arm_that_measures_otherwise_needs_as_one(checkout: Path) -> None:
    branch("order", (LOADER, CHANGE))
    branch("elsewhere", ("src/paribus/evaluate/gsm8k.py", CHANGE), (LAYERS, CHANGE))
    [found] = problems(order={"code": "order"}, elsewhere={"code": "elsewhere"})
    assert f"order changes {LOADER}, by which val_bpb is measured" in found
    study(order={"code": "order", "as_one": "another order of the rows"})


def test_code_that_dvc_yaml_does_not_name_is_refused(checkout: Path) -> None:
    Path("src/paribus/model/idea.py").unlink(missing_ok=True)
    git("checkout", "-q", "-b", "module")
    Path("src/paribus/model/idea.py").write_text("VALUE = 1\n")
    append(LAYERS, "\nfrom paribus.model.idea import VALUE  # noqa\n")
    git("add", "-A")
    git("commit", "-qm", "module")
    git("checkout", "-q", "main")
    [found] = problems(module={"code": "module"})
    assert "does not name src/paribus/model/idea.py" in found
    assert "paribus deps" in found


def test_what_is_not_python_is_named_before_any_compute(checkout: Path) -> None:
    branch("broken", (LAYERS, "\ndef broken(:\n"))
    [found] = problems(broken={"code": "broken"})
    assert f"{LAYERS}: not Python" in found


def test_new_keys_take_the_arms_values_and_others_the_baselines(checkout: Path) -> None:
    text = Path("params.yaml").read_text()
    changed = text.replace("  grad_clip: 1.0\n", "  grad_clip: 1.0\n  idea_beta: 0.9\n")
    git("checkout", "-q", "-b", "keys")
    Path("params.yaml").write_text(changed.replace("  head_dim: 48\n", "  head_dim: 64\n"))
    append(LAYERS, CHANGE)
    git("commit", "-qam", "keys")
    git("checkout", "-q", "main")
    experiment = study(
        keys={"code": "keys"}, other={"code": "keys", "set": {"optimizer.idea_beta": 0.5}}
    )
    run, other = experiment.run("keys", 0, {}), experiment.run("other", 0, {})
    code = experiment.code("keys")
    changes = changes_of(run, code)
    assert "optimizer.idea_beta" not in changes, "it keeps the arm's value"
    assert changes["model.head_dim"] == 16, "the baseline's"
    assert changes_of(other, code)["optimizer.idea_beta"] == 0.5
    assert run.key != other.key
    assert experiment.values("other")["optimizer.idea_beta"] == 0.5
    assert experiment.config("keys") == experiment.config()
    pieces, base = (
        pieces_of(experiment, run),
        pieces_of(experiment, experiment.run("baseline", 0, {})),
    )
    assert pieces["tokens"] == base["tokens"], "the data are shared"
    assert pieces["pretrain"] != base["pretrain"]
    unknown = {"code": "keys", "set": {"optimizer.idea_bet": 1}}
    assert "idea_bet" in problems(unknown=unknown)[0]


def test_a_settled_arm_keeps_its_commit(checkout: Path) -> None:
    first = branch("idea", (LAYERS, CHANGE))
    experiment = study(idea={"code": "idea"})
    code = experiment.code("idea")
    assert code is not None
    settle_code("idea", "idea", code, code_key(experiment))
    git("branch", "-q", "-f", "idea", branch("moved", (LAYERS, CHANGE * 2)))
    again = study(idea={"code": "idea"})
    moved = again.code("idea")
    assert moved is not None
    assert moved.commit == first
    assert "has moved" in again.warnings[0]
    git("branch", "-q", "-D", "idea", "moved")
    assert study(to_run=False, idea={"code": "idea"}).code("idea") is not None


def test_a_patch_that_no_longer_applies_is_refused_with_gits_words(checkout: Path) -> None:
    append(LAYERS, CHANGE)
    Path("idea.patch").write_text(git("diff") + "\n")
    git("checkout", "-q", LAYERS)
    experiment = study(idea={"code": "idea.patch"})
    code = experiment.code("idea")
    assert code is not None
    settle_code("idea", "idea", code, code_key(experiment))
    Path(LAYERS).write_text("pass\n")
    git("commit", "-qam", "other layers")
    [found] = problems(idea={"code": "idea.patch"})
    assert "idea.patch: does not apply to" in found
    reported = study(to_run=False, idea={"code": "idea.patch"})
    assert reported.code("idea") is not None, "what is done can still be reported"


@pytest.mark.parametrize("equal", ["seconds", "flops"])
def test_a_budget_counted_by_other_code_is_refused(checkout: Path, equal: str) -> None:
    branch("layers", (LAYERS, CHANGE))
    arms = {"layers": {"code": "layers"}}
    with pytest.raises(UserError, match=f"equal: {equal}: .*say equal: tokens"):
        parse_experiment("idea", FILE | {"arms": arms, "equal": equal}, to_run=True)


def test_seeds_match_while_initial_values_and_the_order_of_data_are_the_same_code(
    checkout: Path,
) -> None:
    head = git("rev-parse", "main")
    layers = branch("layers", (LAYERS, CHANGE))
    order = branch("order", (LOADER, CHANGE))
    initial = branch("initial", ("src/paribus/model/initial.py", CHANGE))
    assert matching(STAGES, head, layers).holds
    assert not matching(STAGES, head, order).data_order
    assert matching(STAGES, head, order).initial_values
    assert not matching(STAGES, head, initial).initial_values
    assert "unmatched runs" in matching(STAGES, head, initial).sentence("initial")


def test_check_prints_what_arms_change_for_people_and_programs(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commit = branch("layers", (LAYERS, CHANGE))
    asked = FILE | {"arms": {"layers": {"code": "layers"}}}
    Path("experiments").mkdir(exist_ok=True)
    Path("experiments/idea.yaml").write_text(json.dumps(asked))
    git("add", "experiments")
    git("commit", "-qm", "ask")
    check("idea", as_json=True)
    [code] = [arm["code"] for arm in json.loads(capsys.readouterr().out)["arms"].values()]
    assert code["commit"] == commit
    assert code["files"] == [{"path": LAYERS, "kind": "code", "added": 2, "removed": 0}]
    assert code["matched"] is True
    assert "+IDEA = 1" in code["diff"]
    check("idea", as_json=False)
    assert f"layers: layers is {commit[:10]}" in capsys.readouterr().out
