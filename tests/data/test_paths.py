"""A name that comes from data decides no path outside its folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from paribus.data.paths import file_name_problem, inside
from paribus.errors import UserError
from paribus.places import find_checkpoint

ODD = (
    "",
    ".",
    "..",
    "../x",
    "a/../../x",
    "a/..",
    "./x",
    "a//x",
    "/etc/passwd",
    "~/x",
    "a\\..\\x",
    "C:/x",
    "C:x",
    "x\0y",
    "x\ny",
    "x" * 300,
    "x/" * 500 + "x",
    "half \ud83d",
)


@pytest.mark.parametrize("name", ODD)
def test_a_name_that_leads_elsewhere_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the listing: "):
        inside(tmp_path, name, "the listing")


def test_a_link_of_dvcs_to_its_cache_may_be_followed(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "object").write_text("text")
    (tmp_path / "folder/shard.bin").symlink_to(tmp_path / "object")
    found = inside(tmp_path / "folder", "shard.bin", "manifest", links=True)
    assert found.read_text() == "text"
    with pytest.raises(UserError, match="leads out"):
        inside(tmp_path / "folder", "../object", "manifest", links=True)


def test_a_link_that_leads_elsewhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/out").symlink_to(tmp_path)
    with pytest.raises(UserError, match="by a link"):
        inside(tmp_path / "folder", "out/x.json", "the bundle")


@pytest.mark.parametrize(
    "name", ["a", "a/b.json", "..a", "a..b/c", "日本 (1).jsonl", "[*].txt", "-x"]
)
def test_every_other_name_is_a_path_below_the_folder(name: str, tmp_path: Path) -> None:
    assert inside(tmp_path, name, "x") == tmp_path / name


def test_the_name_of_one_file_has_no_parts() -> None:
    assert file_name_problem("a/b")
    assert file_name_problem("./victim")
    assert file_name_problem("/tmp/x")
    assert file_name_problem("bigbench_qa_wikidata") is None


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "x/" * 3000])
def test_a_checkpoint_whose_name_no_file_can_have_is_not_there(name: str) -> None:
    with pytest.raises(UserError, match="no checkpoint '.{1,300}; "):
        find_checkpoint(name)
