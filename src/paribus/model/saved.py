"""The description of a checkpoint in its folder, checked before a model is built from it.

`config.json` is held to the bounds of params.yaml, the tensors of `model.safetensors` to the shapes that `config.json` makes,
`tokenizer.json` to its vocabulary, and all three to the checksums in `provenance.json`.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

from paribus.config import Architecture, parse_architecture
from paribus.errors import UserError
from paribus.files import Values, parse

CHECKED = ("model.safetensors", "config.json", "tokenizer.json")  # files with a checksum
DIGESTS = "sha256"  # the key of provenance.json that has them
CURE = "`dvc checkout` brings back the checkpoint that its stage wrote"


def digests_of(folder: Path) -> dict[str, str]:
    """Name -> sha256 of each file that provenance.json vouches for."""
    return {name: _digest(folder / name) for name in CHECKED}


def check_record(folder: Path) -> None:
    """Raises UserError for a checkpoint whose files are not those that its provenance.json was written with."""
    path = folder / "provenance.json"
    if not path.is_file():
        if not (folder / "config.json").is_file():
            raise UserError(
                f"{folder}: not a checkpoint, as it has no config.json; `dvc repro` makes them"
            )
        raise UserError(
            f"{path}: missing; without it nothing is known of how this checkpoint was made, and nothing is built on "
            f"it; {CURE} (`paribus chat` talks to one without it)"
        )
    digests = _object(path).get(DIGESTS)
    if not isinstance(digests, dict) or any(name not in digests for name in CHECKED):
        raise UserError(
            f"{path}: key {DIGESTS} is {digests!r:.80}; expected a checksum for each of {', '.join(CHECKED)}; {CURE}"
        )
    wrong = []
    for name in CHECKED:
        file = folder / name
        if not file.is_file():
            wrong.append(f"{file}: missing; {CURE}")
        elif _digest(file) != digests[name]:
            wrong.append(
                f"{file}: its sha256 is not that of {path}: one of the two is damaged; remove both and run "
                "`dvc checkout`"
            )
    if wrong:
        raise UserError(wrong)


def has_record(folder: Path) -> bool:
    """Whether a checkpoint has a provenance.json: one that paribus wrote does, one of a user's own may not."""
    return (folder / "provenance.json").exists()


def read_shape(folder: Path) -> tuple[Architecture, int]:
    """(architecture, vocabulary size) of a checkpoint's config.json, within the bounds that params.yaml has.

    Raises UserError with every key that is not, and where tokenizer.json has another vocabulary.
    """
    path = folder / "config.json"
    values = _object(path)
    architecture, vocab_size, problems = parse_architecture(values)
    if problems or architecture is None or vocab_size is None:
        raise UserError(f"{path}: damaged checkpoint: {problem}; {CURE}" for problem in problems)
    tokens = _tokens(folder / "tokenizer.json")
    if tokens != vocab_size:
        raise UserError(
            f"{path}: damaged checkpoint: vocab_size is {vocab_size:,}, and {folder / 'tokenizer.json'} has {tokens:,} "
            f"tokens; the two have to be the same; {CURE}"
        )
    return architecture, vocab_size


def tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Tensor -> shape, of all in model.safetensors; the file's header alone is read. Raises UserError."""
    from safetensors import SafetensorError, safe_open

    path = folder / "model.safetensors"
    try:
        with safe_open(path, "pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; {CURE}") from None
    except SafetensorError as error:
        raise UserError(f"{path}: damaged checkpoint ({error}); {CURE}") from None


def check_size(folder: Path, found: dict[str, tuple[int, ...]], parameters: int) -> None:
    """Raises UserError where model.safetensors does not hold as many numbers as config.json makes `parameters`.

    So that no model is built that is larger than the file: a slip in config.json may make one that no memory holds.

    Args:
        folder: of the checkpoint.
        found: tensor -> shape, from the head of model.safetensors.
        parameters: numbers that the model of config.json has.
    """
    there = sum(math.prod(shape) for shape in found.values())
    if there != parameters:
        raise UserError(
            f"{folder / 'model.safetensors'}: damaged checkpoint: it holds {there:,} numbers, and "
            f"{folder / 'config.json'} makes a model of {parameters:,}; {CURE}"
        )


def check_shapes(
    folder: Path, found: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]]
) -> None:
    """Raises UserError naming the tensors of model.safetensors that are not of the shapes that config.json makes.

    Args:
        folder: of the checkpoint.
        found: tensor -> shape, from the head of model.safetensors.
        expected: tensor -> shape, as config.json makes them.
    """
    wrong = []
    for name in sorted(expected.keys() | found.keys()):
        if found.get(name) != expected.get(name):
            there = _words(found.get(name))
            wanted = _words(expected.get(name))
            wrong.append(f"tensor {name} is {there}, and config.json makes it {wanted}")
    if wrong:
        more = f", and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        path = folder / "model.safetensors"
        raise UserError(f"{path}: damaged checkpoint: {'; '.join(wrong[:3])}{more}; {CURE}")


def _words(shape: tuple[int, ...] | None) -> str:
    if shape is None:
        return "absent"
    return "x".join(map(str, shape)) or "one number"


def _tokens(path: Path) -> int:
    """How many tokens a tokenizer.json has."""
    about = _object(path)
    model = about.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, list):  # of a unigram model: pairs of a token and its logarithm
        vocabulary = {str(token): score for token, score in vocabulary}
    if not isinstance(vocabulary, dict):
        raise UserError(f"{path}: damaged: key model.vocab is no mapping of tokens to ids; {CURE}")
    names = set(vocabulary)
    for token in about.get("added_tokens") or []:
        if isinstance(token, dict):
            names.add(str(token.get("content")))
    return len(names)


def _object(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a checkpoint. Raises UserError."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; {CURE}") from None
    value, problem = parse(content, Values((object,)))
    if problem is not None:
        raise UserError(f"{path}: damaged ({problem}); remove it and run `dvc checkout`")
    return dict(value)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
