"""What optuna-dashboard shows of a study besides its trials: the metric's name, and a note."""

from __future__ import annotations

import optuna

from paribus.tune.space import Study

UNIT = "bits per byte"
# optuna-dashboard keeps a study's note in these attributes of the storage, in pieces of at most so many characters.
VERSION, PIECE, LONGEST = "dashboard:note_ver", "dashboard:note_str:", 2045


def write_note(study: Study, optuna_study: optuna.Study) -> None:
    """Write the study's question where optuna-dashboard shows notes.

    Args:
        study: its file.
        optuna_study: Optuna's study, new.
    """
    lines = [
        f"**{study.name}**: {UNIT} of held-out text after {study.amount:g} {study.budget}, within "
        f"{study.memory / 2**20:,.0f} MiB.",
        "",
        "| key | is searched over |",
        "| --- | --- |",
    ]
    for key, spread in study.space.items():
        lines.append(
            f"| {key} | {', '.join(f'{name} {value}' for name, value in spread.items())} |"
        )
    lines += [
        "",
        f"The best {study.top} and the default are trained again on {study.seeds} fresh seeds: "
        f"`paribus tune report {study.name}`.",
    ]
    text = "\n".join(lines)
    storage, number = optuna_study._storage, optuna_study._study_id
    storage.set_study_system_attr(number, VERSION, 1)
    for place in range(0, len(text), LONGEST):
        piece = text[place : place + LONGEST]
        storage.set_study_system_attr(number, f"{PIECE}{place // LONGEST}", piece)
