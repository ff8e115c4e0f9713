"""The corpus's CORE tasks: a bundle in the layout of DCLM's."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from paribus import config
from paribus.data import Progress, hub, say
from paribus.data.core_bundle import read_bundle, read_entries
from paribus.data.corpus.described import DOWNLOADS, Entry, describe
from paribus.data.paths import inside, own_path
from paribus.errors import UserError


def build_core(cfg: config.Corpus, out: Path, root: Path, progress: Progress | None) -> Entry:
    """The files of a DCLM-layout bundle that its core.yaml names; `missing` are the tasks without their file."""
    source = config.parse_source(cfg.core)
    if isinstance(source, config.Archive):
        folder = hub.archive(source, root / DOWNLOADS, progress)
    else:
        folder = own_path(root, cfg.core, "corpus.core")
    absent = [name for name in ("core.yaml", "eval_meta_data.csv") if not (folder / name).is_file()]
    if absent:
        raise UserError(
            f"{folder / name}: missing (corpus.core names a folder in the DCLM bundle's layout)"
            for name in absent
        )
    missing = read_bundle(folder).missing  # all that would keep `paribus eval core` from running it
    if missing:
        say(
            f"corpus.core: {len(missing)} tasks lack their data and are left out: {', '.join(missing)}"
        )
    present = {
        f"eval_data/{entry['dataset_uri']}"
        for entry in read_entries(folder / "core.yaml", [])
        if entry["label"] not in missing
    }
    files = []
    for uri in ("core.yaml", "eval_meta_data.csv", *sorted(present)):
        source_file = inside(folder, uri, str(folder / "core.yaml"))
        copy = inside(out, uri, str(folder / "core.yaml"))
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source_file, copy)
        files.append(describe(source_file, uri))
    listed = "".join(f"{entry['path']} {entry['sha256']}\n" for entry in files)
    bundle = hashlib.sha256(listed.encode()).hexdigest()
    return {"bundle": bundle, "files": files, "missing": list(missing)}
