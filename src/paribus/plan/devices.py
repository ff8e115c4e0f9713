"""The one table of cards, devices.yaml, and how a card is found in it by its name.

A name belongs to exactly one card or to none. Case, spacing, the maker's words and RTX are forgiven (`rtx3090`, "NVIDIA GeForce
RTX 3090", `3090`), and a memory size is taken as such. Everything else in a name says that it is another card: a 4090
Laptop, an L40S, an A100 of 40 GB. Plans and MFU then refuse or measure; neither uses the next best entry.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paribus.config import Train, read_yaml
from paribus.errors import UserError
from paribus.plan.memory import parse_bytes

if TYPE_CHECKING:
    from paribus.machine.hardware import Hardware

SPREAD = 1.5  # all fourteen public runs lie within this factor of the data-sheet estimate: benchmarks/measurements.md

_NOISE = ("nvidia", "geforce", "tesla", "apple", "graphics", "gpu", "card", "generation")
_MEMORY = re.compile(r"(?<![a-z0-9])(\d+)\s*(?:gb|gib)(?![a-z0-9])")
_SOME = 6  # names in a message


@dataclass(frozen=True)
class Device:
    """A card: rates per second, sizes in bytes, price in USD an hour."""

    name: str
    flops: float  # of matrix products in the requested type
    bandwidth: float
    memory: int
    attainable: float
    watts: float
    link: float
    kind: str  # cuda, mps or cpu
    source: str
    price: float | None = None
    fp8: float | None = None  # FLOP/s of 8-bit products; None: it has none
    tf32: float | None = None  # FLOP/s of float32 products in TF32; None: it has none
    # stage -> measured seconds / estimated ones, here
    corrections: Mapping[str, float] = field(default_factory=dict)
    spread: float = (
        SPREAD  # of an estimate, either way; of what was measured here where something was
    )
    unmeasured_spread: float = SPREAD  # of stages that were not measured here

    def correction(self, stage: str) -> float:
        """That of the stage, else pretraining's; 1 where neither was measured."""
        return self.corrections.get(stage, self.corrections.get("pretrain", 1.0))

    def spread_of(self, stage: str) -> float:
        """The factor by which the time of a stage may be off, either way."""
        return self.spread if stage in self.corrections else self.unmeasured_spread

    @property
    def rate(self) -> float:
        """FLOP/s of the largest matrix products."""
        return self.flops * self.attainable


@dataclass(frozen=True)
class _Entry:
    """A card of the table and its name."""

    key: str
    memory: tuple[int, ...]  # GB and GiB, rounded
    plain: frozenset[str]  # its names without their memory
    values: Mapping[str, Any]


@functools.cache
def device_table() -> dict[str, dict[str, Any]]:
    """devices.yaml."""
    return read_yaml(Path(__file__).with_name("devices.yaml"))


@functools.cache
def _entries() -> tuple[_Entry, ...]:
    entries = []
    for key, values in device_table().items():
        names = [key, *values.get("names", [])]
        plain = {_plain(name)[0] for name in names}
        without_rtx = {name.removeprefix("rtx") for name in plain}
        size = parse_bytes(str(values["memory"]), key)
        memory = (round(size / 1e9), round(size / 2**30))
        entries.append(_Entry(key, memory, frozenset(plain | without_rtx), values))
    return tuple(entries)


def _plain(name: str) -> tuple[str, int | None]:
    """(letters and digits of a name without the maker's words, its memory in GB or GiB if it says one)."""
    text = name.casefold()
    sizes = _MEMORY.findall(text)
    words = re.findall(r"[^\W_]+", _MEMORY.sub(" ", text))
    plain = "".join(word for word in words if word not in _NOISE)
    for maker in ("nvidia", "geforce"):  # rtx3090 written together with its maker
        plain = plain.removeprefix(maker)
    return plain, int(sizes[0]) if len(sizes) == 1 else None


def _matches(name: str) -> list[_Entry]:
    """Entries that a name may mean: none, one, or several that differ in their memory alone."""
    plain, memory = _plain(name)
    found = [entry for entry in _entries() if plain and plain in entry.plain]
    if memory is not None or len(_MEMORY.findall(name.casefold())) > 1:
        found = [entry for entry in found if memory in entry.memory]
    return found


def known_device(name: str) -> bool:
    """Whether the table has exactly one card of that name."""
    return len(_matches(name)) == 1


def device_named(name: str, dtype: str = "bfloat16", *, option: str = "--device") -> Device:
    """The card of that name, with its rate of products in `dtype`.

    Arguments:
        name: as a person or torch writes it: "rtx3090", "NVIDIA A100-SXM4-80GB".
        dtype: float32 or bfloat16.
        option: what the message names as the source of the name.

    Raises:
        UserError: the table has no such card, or several; the message names the nearest.
    """
    found = _matches(name)
    if len(found) > 1:
        keys = ", ".join(entry.key for entry in found)
        raise UserError(f"{option}: {name!r} may be one of several cards: {keys}; say which")
    if not found:
        raise UserError(_unknown(name, option))
    [entry] = found
    values = entry.values
    return Device(
        name=entry.key,
        flops=values["fp32"] if dtype == "float32" else values["flops"],
        bandwidth=values["bandwidth"],
        memory=parse_bytes(str(values["memory"]), entry.key),
        attainable=values["attainable"],
        watts=values["watts"],
        link=values["link"],
        kind="mps" if entry.key.startswith("Apple") else "cuda",
        source=values["source"],
        price=values.get("price"),
        fp8=values.get("fp8"),
        # half of bf16's by each data sheet; both came with Ampere
        tf32=None if values.get("dtype") == "float32" else values["flops"] / 2,
    )


def suited(device: Device, train: Train) -> Device:
    """The device with the rate of the products that `train` asks for. Raises UserError where it has no such products."""
    kinds = {"fp8": "8-bit products", "tf32": "TF32"}
    for key, words in kinds.items():
        if getattr(train, key) and getattr(device, key) is None:
            cards = [name for name in device_table() if getattr(device_named(name), key)]
            raise UserError(
                f"train.{key}: true: {device.name} has no {words}; set it to false, or take a card that has them: "
                f"{', '.join(cards)}"
            )
    if train.tf32 and device.tf32 is not None:
        return dataclasses.replace(device, flops=device.tf32)
    return device


def _unknown(name: str, option: str) -> str:
    near = _near(name)
    hint = (
        f"the nearest are {', '.join(near)}" if near else f"there are: {', '.join(device_table())}"
    )
    return (
        f"{option}: {name!r} is not in devices.yaml, and no other card stands in for it; {hint}, and cpu (this "
        "machine); add a card with its data sheet to src/paribus/plan/devices.yaml"
    )


def _near(name: str) -> list[str]:
    """Keys whose names look like this one, the most alike first."""
    keys_of: dict[str, list[str]] = {}  # cards that differ in their memory alone share a name
    for entry in _entries():
        for alias in sorted(entry.plain):
            keys_of.setdefault(alias, []).append(entry.key)
    close = difflib.get_close_matches(_plain(name)[0], keys_of, n=_SOME, cutoff=0.5)
    near = [key for alias in close for key in keys_of[alias]]
    return list(dict.fromkeys(near))[:3]


def board_note(name: str) -> str | None:
    """What a person has to know who names a family of boards by one word: which of them is meant; None otherwise."""
    found = _matches(name)
    if len(found) != 1:
        return None
    plain, _ = _plain(name)
    key = found[0].key
    family = [
        entry.key
        for entry in _entries()
        if entry.key != key
        and entry.key.casefold().startswith(f"{plain} ")
        and plain in found[0].plain
    ]
    if not family:
        return None
    return f"{name} is taken as {key} (SXM); cards of their own are: {', '.join(family)}"


def default_dtype(name: str) -> str:
    """What `train.dtype: auto` means on a card: float32 where it has no bfloat16 products."""
    found = _matches(name)
    return str(found[0].values.get("dtype", "bfloat16")) if found else "bfloat16"


def peak_flops(hardware: Hardware) -> float:
    """FLOP/s of one process that MFU is a share of.

    A card of the table in bfloat16 by its data sheet; any other hardware by the best of a few products.
    """
    if hardware.dtype == "bfloat16" and known_device(hardware.device_name):
        return device_named(hardware.device_name).flops
    import torch

    size = 4096 if hardware.device == "cuda" else 768
    a = torch.randn(size, size, device=hardware.device, dtype=getattr(torch, hardware.dtype))
    best = math.inf
    for _ in range(8):
        began = time.perf_counter()
        (a @ a)[0, 0].item()
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best
