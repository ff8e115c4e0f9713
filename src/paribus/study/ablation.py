"""`paribus ablate`: arms x seeds as DVC experiments, through DVC's queue, until every run is done or every arm has a verdict.

Nothing is known only here: what is done is read from DVC's experiments, what is under way from its queue, what went wrong
from `.paribus/ablations/NAME/journal.jsonl`. So this process may be killed at any instant and called again; so may its
workers, whose runs go on from their training states in the main checkout.
"""

from __future__ import annotations

import re
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from paribus import runtime
from paribus.config import flatten
from paribus.errors import UserError
from paribus.graph import assignments, chain
from paribus.journal import Journal, keep_rows, locked, read_json, write_json
from paribus.session import EXIT_PAUSED
from paribus.study.budget import measure_step, pretrain_steps, steps_for
from paribus.study.experiment import (
    BASELINE,
    Experiment,
    Run,
    all_params,
    chain_key,
    check_sources,
    definitions,
    noise_experiment,
    read_experiment,
    registered,
    settings,
)
from paribus.study.queue import Queue, Task
from paribus.study.results import (
    Result,
    asked_key,
    code_key,
    collect,
    done,
    events_of,
    folder_of,
    supersede,
)
from paribus.study.status import Display, table
from paribus.study.verdict import judge, plan_of

MAX_FAILURES = 3  # of a run for reasons outside it, before it is given up
POLL_SECONDS = 3.0
SUSPICIOUS_SECONDS = (
    15.0  # that a task may be without a process of its own: a worker sets it up, or collects it
)


@dataclass
class Study:
    """An ablation under way: its settled values, what it has, what is asked next."""

    experiment: Experiment
    settled: dict[str, Any]  # threads, steps of each arm: decided once
    known: dict[tuple[str, int], Run] = field(default_factory=dict)

    def run(self, arm: str, number: int) -> Run:
        """Arm at the seed of that number, complete."""
        if (arm, number) not in self.known:
            self.known[arm, number] = self._run(arm, number)
        return self.known[arm, number]

    def _run(self, arm: str, number: int) -> Run:
        extra: dict[str, Any] = (
            {"train.threads": self.settled["threads"]} if self.settled["threads"] else {}
        )
        steps = self.settled["steps"].get(arm)
        return self.experiment.run(
            arm, number, extra | ({"pretrain.steps": steps} if steps else {})
        )

    def runs(self, seeds: int, arms: Sequence[str] | None = None) -> list[Run]:
        """Every arm at the first seeds, seed by seed."""
        return [
            self.run(arm, number)
            for number in range(seeds)
            for arm in arms or self.experiment.names
        ]

    @cached_property
    def code(self) -> str:
        return code_key(self.experiment)

    def wanted(self, results: Sequence[Result]) -> list[Run]:
        """The runs asked for by what is known so far.

        A study with looks asks for the seeds of its first look, and for those of the next only of arms without a verdict;
        so what it asks for follows from its results alone, and is the same after any interruption.
        """
        experiment = self.experiment
        if not experiment.sequential:
            return self.runs(experiment.seeds[1])
        asked: dict[str, Run] = {}
        open_arms = list(experiment.arms)
        for look in plan_of(experiment) or ():
            asked |= {run.name: run for run in self.runs(look, [BASELINE, *open_arms])}
            have = done(results, list(asked.values()), self.code)
            if set(asked) - have.keys() - given_up(experiment.name, list(asked.values())).keys():
                break
            found = judge(experiment, list(have.values()))
            open_arms = [
                arm for arm in open_arms if arm in found and found[arm].verdict == "undecided"
            ]
            if not open_arms:
                break
        return list(asked.values())


def settle(experiment: Experiment, workers: int) -> dict[str, Any]:
    """What is decided once for all runs: threads of each (N workers share the cores) and steps of an equal budget."""
    path = folder_of(experiment.name) / "study.json"
    known = read_json(path) or {}
    if "threads" not in known:
        train = experiment.config().train
        cpu = runtime.detect(train).device == "cpu"
        known["threads"] = (
            (train.threads or max(runtime.available_cores() // workers, 1)) if cpu else None
        )
    if experiment.equal == "seconds":
        seconds = known.setdefault("step_seconds", {})
        for arm in experiment.names:
            key = chain_key(["pretrain"], experiment.config(arm))
            if seconds.get(arm, {}).get("key") != key:
                print(f"{experiment.name}: measuring a step of {arm}", file=sys.stderr)
                extra = {"train.threads": known["threads"]} if known["threads"] else {}
                seconds[arm] = {"key": key, "seconds": measure_step(experiment.config(arm, extra))}
    known["steps"] = derived_steps(experiment, known)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, known)
    return known


def derived_steps(experiment: Experiment, known: dict[str, Any]) -> dict[str, int]:
    """Arm -> steps of pretraining, where its budget asks for others than its own."""
    seconds = {
        arm: entry["seconds"] for arm, entry in known.get("step_seconds", {}).items()
    } or None
    found = {arm: steps_for(experiment, arm, seconds) for arm in experiment.names}
    return {
        arm: steps
        for arm, steps in found.items()
        if steps and steps != pretrain_steps(experiment.config(arm))[0]
    }


def study_of(experiment: Experiment) -> Study:
    """The study as it was settled, or as far as it can be told before its first run."""
    known = read_json(folder_of(experiment.name) / "study.json") or {"threads": None}
    if "steps" not in known:
        known["steps"] = derived_steps(experiment, known)
    return Study(experiment, known)


# ---------------------------------------------------------------- running


def run(name: str, workers: int | None = None, gpus: str | None = None) -> None:
    """Run, or go on with, the ablation NAME; then report. Raises UserError before any compute."""
    experiment = read_experiment(name)
    for warning in experiment.warnings + changes(experiment):
        print(f"warning: {warning}", file=sys.stderr)
    registered(experiment.file)
    execute(experiment, workers, gpus)
    report(name, again=True)


def execute(experiment: Experiment, workers: int | None, gpus: str | None) -> list[Result]:
    """Run what is missing; the results. Exits with EXIT_PAUSED when `paribus ablate stop` asks for it."""
    check_sources(experiment.stages)
    cards = [card for card in (gpus or "").split(",") if card.strip()]
    count = workers or len(cards) or experiment.workers
    folder = folder_of(experiment.name)
    with locked(folder / "lock", wait=False) as mine:
        if not mine:
            raise UserError(
                f"{experiment.name} is being run by another `paribus ablate run`; `paribus ablate status "
                f"{experiment.name} --watch` shows it"
            )
        (folder / "stop").unlink(missing_ok=True)
        queue = Queue(runtime.main_checkout())
        tidy(queue, experiment.name)
        driver = Driver(
            Study(experiment, settle(experiment, count)), queue, count, cards or all_cards()
        )
        try:
            return driver.drive()
        except KeyboardInterrupt:
            print(
                f"\n{experiment.name}: its runs go on in DVC's queue; `paribus ablate run {experiment.name}` watches them "
                f"again, `paribus ablate stop {experiment.name}` stops them",
                file=sys.stderr,
            )
            raise SystemExit(130) from None


def all_cards() -> list[str]:
    """The GPUs of this machine, by number."""
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def tidy(queue: Queue, own: str) -> None:
    """Clear the dead ends that killed processes left in DVC's queue; the tasks of the ablation `own` are its driver's."""
    if queue.mend():
        print(
            "a killed `paribus ablate run` had left params.yaml changed and HEAD detached: put back",
            file=sys.stderr,
        )
    for name in queue.bury([task for task in queue.tasks() if not task.name.startswith(f"{own}-")]):
        print(
            f"{name}: said to be running, but nobody runs it: marked as failed in DVC's queue",
            file=sys.stderr,
        )
    for path in queue.clean():
        print(f"{path}: left over by a killed run: removed", file=sys.stderr)


class Driver:
    """Brings the runs of a study through DVC's queue."""

    def __init__(self, study: Study, queue: Queue, workers: int, gpus: Sequence[str]) -> None:
        self.study, self.queue, self.workers, self.gpus = study, queue, workers, gpus
        self.experiment, self.folder = study.experiment, folder_of(study.experiment.name)
        keep_rows(self.folder / "journal.jsonl")
        self.journal = Journal(
            self.folder / "journal.jsonl", lambda text: print(text, file=sys.stderr)
        )
        self.display = Display(self.experiment.name)
        self.started: set[str] = set()
        self.lost: Counter[str] = Counter()  # run -> how often its processes vanished, in this call
        self.alone: dict[str, float] = {}  # revision of a task without a process -> since when
        self.pieces: dict[str, dict[str, str]] = {}  # run -> stage -> name of what it computes

    def drive(self) -> list[Result]:
        """Until nothing is left to run; the results. Each turn looks at everything anew."""
        with self.display:
            runs = self.study.wanted(collect(self.experiment))
            self._disown(runs)
            while True:
                tasks = self._look(
                    {run.name: run for run in runs}
                )  # before the results: what ends between is in both
                results = collect(self.experiment)
                runs = self.study.wanted(results)
                have = done(results, runs, self.study.code)
                failures = given_up(self.experiment.name, runs)
                left = [run for run in runs if run.name not in have and run.name not in failures]
                if (self.folder / "stop").exists():
                    self.display.say(
                        f"{self.experiment.name}: stopped; `paribus ablate run {self.experiment.name}` goes on"
                    )
                    raise SystemExit(EXIT_PAUSED)
                if not left:
                    return [have[run.name] for run in runs if run.name in have]
                self._release(runs, left, have, tasks)
                busy = sum(task.state in ("queued", "running") for task in tasks.values())
                self.queue.start(min(self.workers, max(busy, 1)), self.gpus)
                self.display.show(
                    lambda: table(self.study, runs, have, tasks, failures, self.workers)  # noqa: B023
                )
                time.sleep(POLL_SECONDS)

    def _look(self, runs: dict[str, Run]) -> dict[str, Task]:
        """Our tasks that wait or run; those that ended are noted and taken out of the queue, the dead are buried."""
        tasks = [
            task for task in self.queue.tasks() if task.name.startswith(f"{self.experiment.name}-")
        ]
        now, workers = time.monotonic(), self.queue.workers()
        without = {task.rev for task in tasks if task.state == "running" and task.pid is None}
        self.alone = {rev: self.alone.get(rev, now) for rev in without}
        suspects = [
            task
            for task in tasks
            if task.state == "running"
            and (
                task.pid is not None
                or not workers
                or now - self.alone[task.rev] > SUSPICIOUS_SECONDS
            )
        ]
        buried = self.queue.bury(suspects) if suspects else []
        for task in tasks:
            if task.state == "failed" or task.name in buried:
                self._note("interrupted" if task.name in buried else fate(task.text()), task, runs)
            elif task.state == "done":
                self._event(task.name, "done")
        for task in tasks:
            if task.pid and task.rev not in self.started:
                self.started.add(task.rev)
                self._event(task.name, "started")
        over = [
            task.name for task in tasks if task.state in ("failed", "done") or task.name in buried
        ]
        self.queue.remove(over)
        return {task.name: task for task in tasks if task.name not in over}

    def _event(self, run: str, event: str, **facts: Any) -> None:
        self.journal.append({"time": time.time(), "run": run, "event": event, **facts})

    def _note(self, event: str, task: Task, runs: dict[str, Run]) -> None:
        words = last_words(task.text())
        if event == "interrupted":
            self.lost[task.name] += 1
            event = "failed" if self.lost[task.name] >= MAX_FAILURES else event
        self._event(
            task.name,
            event,
            stage=task.stage,
            words=words,
            key=runs[task.name].key if task.name in runs else "",
        )
        if event == "interrupted":
            self.display.say(
                f"{task.name}: said to be running, but nobody runs it: taken out of DVC's queue, to be queued again"
            )
        elif event in ("failed", "refused"):
            self.display.say(
                f"{task.name}: {event} in {task.stage or 'its set-up'}: {' '.join(words)}"
            )

    def _disown(self, runs: Sequence[Run]) -> None:
        """Tasks of an earlier call that would compute something else, since code or parameters changed, are taken back."""
        by_name = {run.name: run for run in runs}
        for task in self.queue.tasks():
            ours = task.name.startswith(f"{self.experiment.name}-") and task.state in (
                "queued",
                "running",
            )
            if ours and not self._same(task, by_name.get(task.name)):
                self.display.say(
                    f"{task.name}: was queued with other code or parameters: taken back"
                )
                if task.state == "running":
                    self.queue.halt(task)
                self.queue.remove([task.name])

    def _same(self, task: Task, asked: Run | None) -> bool:
        return (
            asked is not None
            and code_key(self.experiment, task.rev) == self.study.code
            and (asked_key(self.experiment, task.rev) == asked.key)
        )

    # ------------------------------------------------------------ what may run beside what

    def _release(
        self,
        runs: Sequence[Run],
        left: Sequence[Run],
        have: dict[str, Result],
        tasks: dict[str, Task],
    ) -> None:
        """Queue what waits. Of runs that share a stage nobody has computed yet, one goes first: the others find it in
        DVC's run-cache."""
        if not left or not self._share(runs, have, tasks):
            return
        made = {piece for run in runs if run.name in have for piece in self._pieces(run).values()}
        made |= set(self._shared(runs).values())
        busy = {
            piece for run in runs if run.name in tasks for piece in self._pieces(run).values()
        } - made
        for run in left:
            pieces = set(self._pieces(run).values()) - made
            if run.name not in tasks and (self.workers == 1 or not pieces & busy):
                self._put(run.name, run.overrides, self.experiment.targets)
                busy |= pieces

    def _put(self, name: str, overrides: dict[str, Any], targets: Sequence[str]) -> None:
        supersede(name)
        known = flatten(settings())
        changed = {
            key: value
            for key, value in overrides.items()
            if key == "seed" or known.get(key, ...) != value
        }
        self.queue.put(name, assignments(changed), targets)
        self._event(name, "queued")

    def _pieces(self, run: Run) -> dict[str, str]:
        """A name for each stage of a run with all it comes from: runs with the same name compute it once."""
        if run.name not in self.pieces:
            config = settings(run.overrides)
            self.pieces[run.name] = {
                stage: chain_key(chain([stage], definitions()), config)
                for stage in self.experiment.stages
            }
        return self.pieces[run.name]

    def _shared(self, runs: Sequence[Run]) -> dict[str, str]:
        """The stages that every run has in common, named."""
        first = self._pieces(runs[0])
        return {
            stage: piece
            for stage, piece in first.items()
            if all(self._pieces(run)[stage] == piece for run in runs)
        }

    @property
    def _shared_name(self) -> str:
        return f"{self.experiment.name}-shared"

    def _share(self, runs: Sequence[Run], have: dict[str, Result], tasks: dict[str, Task]) -> bool:
        """Compute what all runs share before they start side by side; whether that is done."""
        if self._shared_name in tasks:
            return False
        stages = list(shared := self._shared(runs))
        key = "".join(shared.values()) + self.study.code
        events = [row for row in events_of(self.experiment.name) if row["run"] == self._shared_name]
        last = events[-1] if events else {"event": ""}
        if (
            self.workers == 1
            or have
            or not stages
            or any(row.get("shared") == key for row in events)
        ):
            return True
        if last["event"] == "done" or self._fresh(stages, runs[0]):
            self._event(self._shared_name, "shared", shared=key)
            return True
        if (
            last["event"] == "refused"
            or [row["event"] for row in events[-MAX_FAILURES:]] == ["failed"] * MAX_FAILURES
        ):
            raise UserError(
                [
                    f"{self.experiment.name}: the stages before its runs fail: {', '.join(stages)}",
                    *last["words"],
                ]
            )
        self._put(
            self._shared_name,
            {key: value for key, value in runs[0].overrides.items() if key != "seed"},
            stages,
        )
        return False

    def _fresh(self, stages: Sequence[str], run: Run) -> bool:
        """Whether the workspace has the outputs of these stages with a run's parameters."""
        here, there = settings(), settings(run.overrides)
        same = all(
            all_params(definitions()[stage], here) == all_params(definitions()[stage], there)
            for stage in stages
        )
        return same and self.queue.up_to_date(stages)


# ---------------------------------------------------------------- what went wrong


def fate(text: str) -> str:
    """How a failed task ended: paused (it goes on), interrupted (its process vanished), refused (it would be again), failed
    (for a reason outside it)."""
    ended = re.findall(r"exited with (-?\d+)", text)
    if not ended and "ERROR" not in text and "Traceback" not in text:
        return "interrupted"
    status = int(ended[-1]) if ended else None
    if status == EXIT_PAUSED:
        return "paused"
    return "refused" if status == 2 and " in use by " not in text else "failed"


def last_words(text: str) -> list[str]:
    """What a task said at its end: paribus's own lines if there are some."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    own = [line for line in lines if line.startswith("paribus: ")]
    return (own or lines)[-4:]


def given_up(name: str, runs: Sequence[Run]) -> dict[str, str]:
    """Run -> why, of those that will not be tried again: refused once, or failed MAX_FAILURES times."""
    found = {}
    rows = events_of(name)
    for run in runs:
        mine = [row for row in rows if row["run"] == run.name and row.get("key") == run.key]
        failed = [row for row in mine if row["event"] == "failed"]
        refused = [row for row in mine if row["event"] == "refused"]
        if refused or len(failed) >= MAX_FAILURES:
            last = (refused or failed)[-1]
            found[run.name] = f"{last['event']} in {last['stage']}: {' '.join(last['words'])}"
    return found


def changes(experiment: Experiment) -> list[str]:
    """A warning where the file is no longer the one that results were obtained under: the question must come first."""
    blobs = {result.file for result in collect(experiment)} - {None}
    try:
        now = registered(experiment.file)
    except UserError as error:
        return [f"{problem}" for problem in error.problems] if blobs else []
    other = sorted(str(blob)[:10] for blob in blobs - {now})
    return (
        [
            f"{experiment.file} was changed after its first result: results were obtained under {', '.join(other)}, and it is "
            f"{now[:10]} now; the report shows what changed"
        ]
        if other
        else []
    )


# ---------------------------------------------------------------- stopping, looking


def stop(name: str) -> None:
    """Take what waits out of the queue and have what runs save its state and end."""
    experiment = read_experiment(name)
    folder = folder_of(name)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "stop").touch()
    queue = Queue(runtime.main_checkout())
    with locked(folder / "lock"):  # `paribus ablate run` has seen it then, and puts nothing more
        tidy(queue, name)
        ours = [task for task in queue.tasks() if task.name.startswith(f"{name}-")]
        queue.remove([task.name for task in ours if task.state == "queued"])
        running = [task for task in ours if task.state == "running"]
        for task in running:
            print(f"{task.name}: asked to save and stop", file=sys.stderr)
            queue.halt(task)
    print(
        f"{experiment.name}: stopped, {len(running)} run(s) saved; `paribus ablate run {name}` goes on",
        file=sys.stderr,
    )


def status(name: str, watch: bool = False) -> None:
    """Print the table of every run; watch: until all are done."""
    experiment = read_experiment(name)
    study, queue = study_of(experiment), Queue(runtime.main_checkout())
    for warning in changes(experiment):
        print(f"warning: {warning}", file=sys.stderr)
    with Display(name, live=watch) as display:
        while True:
            results = collect(experiment)
            runs = study.wanted(results)
            have, tasks = (
                done(results, runs, study.code),
                {task.name: task for task in queue.tasks()},
            )
            failures = given_up(name, runs)
            rows = table(study, runs, have, tasks, failures, max(len(queue.workers()), 1))
            if not watch:
                display.print(rows)
                return
            display.show(lambda: rows)  # noqa: B023
            if all(run.name in have or run.name in failures for run in runs):
                return
            time.sleep(POLL_SECONDS)


def report(name: str, again: bool = False) -> None:
    """Judge what there is, print it and write the pages. again: what changed in the file was said already."""
    from paribus.study.verdict_page import write_pages

    experiment = read_experiment(name)
    changed = changes(experiment)
    for warning in [] if again else changed:
        print(f"warning: {warning}", file=sys.stderr)
    study = study_of(experiment)
    runs, results, notes = usable(study)
    if not results:
        raise UserError(
            f"{name}: nothing is done yet; `paribus ablate run {name}` begins it, `paribus ablate status {name}` "
            "shows how it stands"
        )
    write_pages(experiment, runs, results, given_up(name, runs), notes + changed)


def usable(study: Study) -> tuple[list[Run], list[Result], list[str]]:
    """(runs asked for, results to judge, what to say about them): those of today's code and parameters; where there are
    none, those of the code that has most."""
    results = collect(study.experiment)
    runs = study.wanted(results)
    if have := done(results, runs, study.code):
        return runs, [have[run.name] for run in runs if run.name in have], []
    codes = [result.code for result in results]
    code = max(codes, key=codes.count, default="")
    older = sorted(
        (result for result in results if result.code == code),
        key=lambda result: "-was-" not in result.name,
    )
    chosen = list({(result.arm, result.seed): result for result in older}.values())
    commits = ", ".join(sorted({result.baseline[:10] for result in chosen}))
    return (
        runs,
        chosen,
        [
            f"code or parameters changed since these results, which are of commit {commits}; "
            "`paribus ablate run` would compute them anew"
        ]
        if chosen
        else [],
    )


def noise(
    profile: str, seeds: int, metrics: Sequence[str], workers: int | None, gpus: str | None
) -> None:
    """The noise floor of a profile over seeds: run what is missing, then the table of seeds for effects."""
    from paribus.study.noise_page import write_noise

    if seeds < 3:
        raise UserError(f"--seeds {seeds}: a spread needs at least 3")
    experiment, wanted = noise_experiment(profile, seeds, metrics or ["val_bpb"])
    results = execute(experiment, workers, gpus)
    write_noise(experiment, wanted, results)
