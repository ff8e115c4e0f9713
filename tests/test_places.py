"""Where a project keeps its state: in the main checkout, also from an experiment's clone."""

from __future__ import annotations

from pathlib import Path

import pytest

from paribus.places import main_checkout, state_root


def test_state_is_kept_in_the_main_checkout_of_an_experiments_clone(
    stages_project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = stages_project / "inner"
    inner.mkdir()
    monkeypatch.chdir(inner)
    assert main_checkout() == stages_project  # the closest dvc.yaml
    main = stages_project / "elsewhere"
    monkeypatch.setenv("DVC_ROOT", str(main))
    assert state_root() == main / ".paribus"
    assert (main / ".paribus").is_dir()
