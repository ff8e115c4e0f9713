"""Files of overrides under experiments/profiles."""

from __future__ import annotations

from pathlib import Path

from paribus.config.parsing import dotted
from paribus.config.reading import read_yaml
from paribus.errors import UserError, did_you_mean, shown

PROFILES = Path("experiments/profiles")


def profile_overrides(name: str) -> dict[str, object]:
    """A profile's dotted overrides. Raises UserError with the nearest name where no profile has that name."""
    return dotted(read_yaml(named_file(PROFILES, name, "profile")))


def named_file(folder: Path, name: str, kind: str) -> Path:
    """`folder`/`name`.yaml, where a file of that name lies in the folder itself; a path is not a name.

    kind: what such a file is called in the error. Raises UserError.
    """
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    if name in names:
        return folder / f"{name}.yaml"
    last = name.rsplit("/", 1)[-1]
    hint = f"did you mean {last}?" if last in names else did_you_mean(last, names)
    raise UserError(
        f"no {kind} {shown(name)} in {folder}; {hint}{' ' if hint else ''}there are: {', '.join(names) or 'none'}"
    )
