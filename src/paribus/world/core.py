"""CORE tasks about the embedded world, in the layout of the public DCLM evaluation bundle.

Ten tasks of the three types: multiple_choice {query, choices, gold}, schema {context_options, continuation, gold} and
language_modeling {context, continuation}. They ask what documents teach, at few-shot counts that fit 256 tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from paribus.errors import UserError
from paribus.world import vocabulary as words
from paribus.world.facts import Fact, World
from paribus.world.rng import Rng, stream
from paribus.world.stories import PLOTS, fields, tell

Row = dict[str, Any]


class Task(NamedTuple):
    """A CORE task about the world.

    label, category: its names in the bundle. kind: multiple_choice, schema or language_modeling. shots: examples before each
    item. make: the row of an item, from the world, a generator and the item's index. delimiter: between question and answer;
    None: the default.
    """

    label: str
    category: str
    kind: str
    shots: int
    baseline: int
    """Per cent that guessing reaches."""
    make: Callable[[World, Rng, int], Row]
    description: str
    delimiter: str | None = None

    @property
    def uri(self) -> str:
        """The file of its items below eval_data."""
        return f"{self.category.replace(' ', '_')}/{self.label}.jsonl"


def _nth_fact(world: World, kind: str, index: int) -> Fact:
    """Fact `index` in an order that uses every fact of the kind once before any comes again."""
    facts = [fact for fact in world.facts if fact.entity.kind == kind]
    return facts[index * 89 % len(facts)]  # 89 is prime and divides no number of facts


def _choices(rng: Rng, right: str, values: tuple[str, ...]) -> Row:
    wrong = rng.sample([value for value in values if value != right], 3)
    gold = rng.below(4)
    return {"choices": wrong[:gold] + [right] + wrong[gold:], "gold": gold}


def _fact_choice(kind: str) -> Callable[[World, Rng, int], Row]:
    def make(world: World, rng: Rng, index: int) -> Row:
        fact = _nth_fact(world, kind, index)
        values = world.values[kind, fact.relation.name]
        return {"query": f"Question: {fact.question(rng)}", **_choices(rng, fact.value, values)}

    return make


def _thing_choice(world: World, rng: Rng, index: int) -> Row:
    fact = _nth_fact(world, "thing", index)
    return {
        "query": fact.prefix(rng),
        **_choices(rng, fact.value, world.values["thing", fact.relation.name]),
    }


def _arithmetic_choice(world: World, rng: Rng, index: int) -> Row:
    """Small sums; the wrong choices lie near the right one."""
    a, b = rng.between(2, 12), rng.between(2, 12)
    sums = ((f"{a + b} minus {b} is", a), (f"{a} plus {b} is", a + b), (f"{a} times {b} is", a * b))
    text, result = rng.pick(sums)
    near = tuple(str(n) for n in range(max(0, result - 4), result + 5))
    return {"query": text, **_choices(rng, str(result), near)}


def _schema_facts(world: World, rng: Rng, index: int) -> Row:
    """Two subjects, one fact: of whom is it true?"""
    fact = _nth_fact(world, "person", index)
    template = fact.relation.prefixes[0]
    others = [
        other
        for other in world.by_relation["person", fact.relation.name]
        if other.value != fact.value
    ]
    pair = [fact, rng.pick(others)]
    gold = rng.below(2)
    if gold:
        pair.reverse()
    options = [template.format_map(one.entity.fields("")) for one in pair]
    return {"context_options": options, "continuation": f"{fact.value}.", "gold": gold}


def _schema_more(world: World, rng: Rng, index: int) -> Row:
    (m, _), (n, _) = rng.sample(words.PEOPLE, 2)
    a, b = rng.sample(range(2, 60), 2)
    thing = words.plural(rng.pick(rng.pick(words.DOMAINS).things))
    context = f"{m} has {a} {thing} and {n} has {b} {thing}."
    gold = 0 if a > b else 1
    options = [f"{context} {m}", f"{context} {n}"]
    return {"context_options": options, "continuation": f"has more {thing}.", "gold": gold}


def _schema_loan(world: World, rng: Rng, index: int) -> Row:
    """Lent, or lent and given back: who has it now?"""
    names = fields(world, rng)
    returned = rng.chance(0.5)
    loan = PLOTS["loan"]
    beats = [loan[0], loan[4], PLOTS["return"][-2]] if returned else [loan[0], loan[2], loan[4]]
    told = " ".join(rng.pick(beat) for beat in beats).format_map(names)
    people = [names["F"], names["P"]]
    if rng.chance(0.5):
        people.reverse()
    options = [f"{told} Now {person}" for person in people]
    gold = people.index(names["P"] if returned else names["F"])
    return {"context_options": options, "continuation": f"has the {names['x']}.", "gold": gold}


def _lm_facts(world: World, rng: Rng, index: int) -> Row:
    fact = world.facts[index * 89 % len(world.facts)]
    return {"context": fact.prefix(rng), "continuation": fact.value}


def _lm_story(world: World, rng: Rng, index: int) -> Row:
    """The last word of a story, which names a thing from its beginning."""
    names = fields(world, rng)
    told = tell(rng, names, "lost", ending=False)
    context, word = told.rstrip(".").rsplit(" ", 1)
    return {"context": context, "continuation": word}


def _lm_sequence(world: World, rng: Rng, index: int) -> Row:
    step = rng.between(1, 12)
    start = step if rng.chance(0.5) else rng.between(0, 60)
    numbers = [str(start + i * step) for i in range(6)]
    return {
        "context": f"Count by {step}: " + ", ".join(numbers[:5]) + ",",
        "continuation": numbers[5],
    }


ANSWER = "\nAnswer: "
TASKS = (
    Task("world_people", "world knowledge", "multiple_choice", 3, 25, _fact_choice("person"),
         "Questions about people of the embedded world with four choices.", ANSWER),
    Task("world_towns", "world knowledge", "multiple_choice", 3, 25, _fact_choice("town"),
         "Questions about towns of the embedded world with four choices.", ANSWER),
    Task("world_things", "world knowledge", "multiple_choice", 0, 25, _thing_choice,
         "Statements about things of the embedded world with four ways to complete each."),
    Task("world_arithmetic", "symbolic problem solving", "multiple_choice", 5, 25, _arithmetic_choice,
         "Small sums, differences and products with four choices near the right one."),
    Task("world_who", "commonsense reasoning", "schema", 0, 50, _schema_facts,
         "Two people of the embedded world and one fact that is true of one of them."),
    Task("world_more", "symbolic problem solving", "schema", 2, 50, _schema_more,
         "Which of two people has more things."),
    Task("world_loan", "language understanding", "schema", 0, 50, _schema_loan,
         "Who has a thing after it was lent."),
    Task("world_facts", "world knowledge", "language_modeling", 5, 0, _lm_facts,
         "Facts of the embedded world to complete."),
    Task("world_story", "language understanding", "language_modeling", 0, 0, _lm_story,
         "The last word of a story that named it at the beginning."),
    Task("world_sequence", "symbolic problem solving", "language_modeling", 3, 0, _lm_sequence,
         "The next number of a sequence with equal steps."),
)  # fmt: skip


CSV_HEADER = "Eval Task,Task Category,Task Type,#shots,#datapoints,Random baseline,Centered Metric?,Description"


def task_rows(world: World, seed: int, task: Task, count: int) -> list[Row]:
    """`count` different rows of a task; raises UserError where there are fewer."""
    rows: list[Row] = []
    seen: set[str] = set()
    index = 0
    while len(rows) < count:
        row = task.make(world, stream(seed, f"core/{task.label}", index), index)
        key = json.dumps(row)
        if key not in seen:
            seen.add(key)
            rows.append(row)
        index += 1
        if index > 20 * count + 100:
            raise UserError(
                f"corpus.world.core_items: {count} asked, but {task.label} has only {len(rows)} different items"
            )
    return rows


def write_core(out: Path, world: World, seed: int, items: int) -> None:
    """Writes out/core.yaml, out/eval_meta_data.csv and out/eval_data/<category>/<label>.jsonl."""
    yaml, csv = "icl_tasks:\n", CSV_HEADER + "\n"
    for task in TASKS:
        rows = task_rows(world, seed, task, items)
        path = out / "eval_data" / task.uri
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes("".join(json.dumps(row) + "\n" for row in rows).encode())
        yaml += _yaml_entry(task)
        kind = task.kind.replace("_", " ")
        csv += f"{task.label},{task.category},{kind},{task.shots},{len(rows)},{task.baseline},,"
        csv += f'"{task.description}"\n'
    (out / "core.yaml").write_bytes(yaml.encode())
    (out / "eval_meta_data.csv").write_bytes(csv.encode())


def _yaml_entry(task: Task) -> str:
    """A task in core.yaml, as the bundle writes it."""
    lines = [
        f"- label: {task.label}",
        f"  dataset_uri: {task.uri}",
        "  num_fewshot:",
        f"  - {task.shots}",
        f"  icl_task_type: {task.kind}",
    ]
    if task.delimiter:
        lines.append(f"  continuation_delimiter: {json.dumps(task.delimiter)}")
    return "\n".join(lines) + "\n"
