"""One function per DVC stage: read the config, wire the parts, write the outputs; metrics come last.

Paths are relative to the working directory, which in a queued experiment is a clone of its own; resumable state
is kept in the main checkout, in a folder named by the stage's fingerprint.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paribus import graph, runtime, tracking
from paribus.config import Config, Conversations, Pretrain, flatten, load_config, read_yaml, resolve_model, resolve_pretrain
from paribus.progress import Progress
from paribus.session import EXIT_PAUSED, Interrupt, StateLock
from paribus.summary import rl_metrics, supervised_metrics, write_csv, write_curve, write_json

if TYPE_CHECKING:
    from paribus.data.tokenizer import Tokenizer
    from paribus.generate import Engine
    from paribus.model.gpt import GPT
    from paribus.train.loop import Position
    from paribus.train.objectives import Objective

CORPUS, TOKENIZER, TOKENS, CHECKPOINTS = (Path(p) for p in ("data/corpus", "data/tokenizer", "data/tokens", "checkpoints"))
EVALS, METRICS, PLOTS, REPORT = (Path(p) for p in ("evals", "metrics", "plots", "report"))
STAGES = ("base", "mid", "sft", "rl")  # checkpoints, in the order of the curriculum


# ---------------------------------------------------------------- data


def corpus() -> None:
    """Documents, conversations, problems and tasks -> data/corpus."""
    from paribus.data.corpus import build_corpus

    config = load_config()
    with Progress("corpus") as bar:
        build_corpus(config.corpus, CORPUS, runtime.main_checkout(), bar.count)


def tokenizer() -> None:
    """Byte-level BPE of the documents -> data/tokenizer, metrics/tokenizer.json."""
    from paribus.data.shards import documents, sample_documents
    from paribus.data.tokenizer import compression, train_tokenizer

    config = load_config()
    megabytes = config.tokenizer.train_megabytes
    trained = train_tokenizer(sample_documents(CORPUS / "documents", megabytes), config.tokenizer)
    TOKENIZER.mkdir(parents=True, exist_ok=True)
    trained.save(TOKENIZER / "tokenizer.json")
    texts = [text for number, text in enumerate(documents(CORPUS / "documents")) if number % 50 == 0]
    write_json(METRICS / "tokenizer.json",
               {"vocab_size": trained.vocab_size, "bytes_per_token": compression(trained, texts)})


def tokens() -> None:
    """Documents -> token shards in data/tokens."""
    from paribus.data.shards import write_shards

    config = load_config()
    with Progress("tokens") as bar:
        write_shards(CORPUS / "documents", load_tokenizer(), config.tokens, TOKENS, bar.count)


# ---------------------------------------------------------------- training


@dataclass(frozen=True)
class Session:
    """A computing stage under way: where it runs, where its state is, what it logs to."""

    stage: str
    config: Config
    hardware: runtime.Hardware
    fingerprint: str
    folder: Path
    interrupt: Interrupt

    @property
    def provenance(self) -> dict[str, Any]:
        """What the outputs are a function of: no times, no host, so that the same run gives the same bytes."""
        definition = graph.stage_definition(self.stage)
        machine = runtime.provenance(self.hardware)
        return {
            "stage": self.stage,
            "fingerprint": self.fingerprint,
            "params": graph.declared_params(definition, self.config),
            "deps": {path: graph.tree_digest([path]) for path in definition.deps},
            **{name: machine[name] for name in ("git", "requirements_lock", "versions", "hardware", "paribus")},
        }

    def open_log(self, params: dict[str, Any], resume_step: int | None = None) -> tracking.RunLog:
        """This stage's MLflow run. params: resolved values that differ from params.yaml's."""
        data = [path for path in graph.stage_definition(self.stage).deps if not path.startswith("src/")]
        return tracking.RunLog.open(
            self.stage, folder=self.folder, config=self.config, params=flatten(self.config) | params,
            fingerprint=self.fingerprint, resume_step=resume_step,
            tags={"hardware": self.hardware.device_name, "dtype": self.hardware.dtype, "threads": str(self.hardware.threads)},
            datasets={path: (path, graph.dvc_hash(path)) for path in data},
        )


@contextmanager
def session(stage: str) -> Iterator[Session]:
    """Check the config and the hardware, name the run, and take its state for ourselves."""
    config = load_config()
    hardware = runtime.detect(config.train)
    runtime.apply(hardware, config.seed)
    fingerprint = runtime.stage_fingerprint(stage, config, hardware)
    folder = runtime.state_root() / "runs" / f"{stage.replace('@', '-')}-{fingerprint}"
    with StateLock(folder), Interrupt(folder, config.train.session_minutes) as interrupt:
        print(f"paribus {stage}: {fingerprint} on {hardware.device_name}, {hardware.dtype}, "
              f"{hardware.threads} threads", file=sys.stderr)
        yield Session(stage, config, hardware, fingerprint, folder, interrupt)


def pretrain() -> None:
    """Token shards -> checkpoints/base, metrics/pretrain.json, plots/pretrain.csv."""
    from paribus.data.loader import DocumentLoader
    from paribus.evaluate.bpb import bits_per_byte
    from paribus.model.accounting import flops_per_token, parameters
    from paribus.train.objectives import NextToken

    with session("pretrain") as run:
        config, words = run.config, load_tokenizer()
        model_config = resolve_model(config.model)
        counts = parameters(model_config, words.vocab_size)
        schedule = resolve_pretrain(config.pretrain, counts["total"], model_config.seq_len)
        model = new_model(run, words.vocab_size)
        model.initialise(config.seed)
        validation = DocumentLoader(TOKENS, "val", model_config.seq_len, config.seed)

        def val_bpb(max_tokens: int | None) -> float:
            rows = validation.validation_rows(schedule.device_batch_size, max_tokens)
            return bits_per_byte(model, rows, words.token_bytes).bpb

        def evaluate(step: int) -> dict[str, float]:
            due = schedule.eval_every and step % schedule.eval_every == 0 and step < (schedule.steps or 0)
            return {"val/bpb": val_bpb(schedule.eval_tokens)} if due else {}

        loader = DocumentLoader(TOKENS, "train", model_config.seq_len, config.seed)
        objective = NextToken(loader, rows_of(schedule, model_config.seq_len), schedule.device_batch_size)
        params = flatten(model_config, "model.") | flatten(schedule, "pretrain.")
        with train(run, model, objective, schedule, evaluate, params) as (log, position):
            summary = supervised_metrics(log.rows(), position) | {
                "val_bpb": val_bpb(config.eval.bpb_tokens),
                "parameters": counts["total"],
                "flops_per_token": flops_per_token(model_config, words.vocab_size),
            }
            log_samples(run, log, model, words)
            write_outputs(run, log, model, "base", "pretrain", summary)


def midtrain() -> None:
    """checkpoints/base -> checkpoints/mid: the chat format and the tool."""
    converse("midtrain", "base", "mid", load_config().midtrain)


def sft() -> None:
    """checkpoints/mid -> checkpoints/sft."""
    converse("sft", "mid", "sft", load_config().sft)


def converse(stage: str, source: str, target: str, schedule: Conversations) -> None:
    """Train the `source` checkpoint on a mixture of conversations."""
    from paribus.data.chat import load_sources
    from paribus.data.loader import ConversationLoader, DocumentLoader, shuffle_key
    from paribus.train.objectives import NextToken

    with session(stage) as run:
        words, model = load_tokenizer(CHECKPOINTS / source), load_model(run, source)
        seq_len, seed = model.config.seq_len, shuffle_key(run.config.seed, stage)  # not pretraining's order again
        names = [name for name, weight in schedule.mixture.items() if weight > 0]
        sources: dict[str, Any] = dict(load_sources(CORPUS, [name for name in names if name != "documents"]))
        if "documents" in names:
            sources["documents"] = DocumentLoader(TOKENS, "train", seq_len, seed)
        loader = ConversationLoader(sources, schedule.mixture, words, seq_len, seed, schedule.attend_across)
        objective = NextToken(loader, rows_of(schedule, seq_len), schedule.device_batch_size)
        params = flatten(model.config, "model.") | flatten(schedule, f"{stage}.")
        with train(run, model, objective, schedule, lambda step: {}, params) as (log, position):
            log_samples(run, log, model, words)
            write_outputs(run, log, model, target, stage, supervised_metrics(log.rows(), position))


def rl() -> None:
    """checkpoints/sft -> checkpoints/rl, metrics/rl.json with the sparsity of the reward, plots/rl.csv."""
    from paribus.data import load_jsonl
    from paribus.generate import Engine
    from paribus.train.objectives import PolicyGradient
    from paribus.train.rollout import rollout

    with session("rl") as run:
        cfg, seed = run.config.rl, run.config.seed
        words, model = load_tokenizer(CHECKPOINTS / "sft"), load_model(run, "sft")
        engine = Engine(model, words)
        problems = list(load_jsonl(CORPUS / "problems/train.jsonl"))
        watched = list(load_jsonl(CORPUS / "problems/validation.jsonl"))[: cfg.watch_questions]

        def evaluate(step: int) -> dict[str, float]:
            if step == cfg.steps:
                return watch(engine, watched, run, sample=True)
            return watch(engine, watched, run) if cfg.watch_every and step % cfg.watch_every == 0 else {}

        def sample(step: int) -> Any:
            model.eval()
            drawn = rollout(engine, problems, cfg=cfg, seed=seed, step=step)
            model.train()
            return drawn

        objective = PolicyGradient(sample, cfg.device_batch_size)
        params = flatten(model.config, "model.") | flatten(cfg, "rl.")
        before = partial(watch, engine, watched, run, sample=True)
        with train(run, model, objective, cfg, evaluate, params, before) as (log, position):
            log_samples(run, log, model, words)
            write_outputs(run, log, model, "rl", "rl", rl_metrics(log.rows(), position))


def watch(engine: Engine, problems: list[dict[str, str]], run: Session, sample: bool = False) -> dict[str, float]:
    """Accuracy on problems held out of train: greedy, and with `sample` pass@k too."""
    from dataclasses import replace

    from paribus.evaluate.gsm8k import evaluate_gsm8k

    rl, seed = run.config.rl, run.config.seed
    engine.model.eval()
    settings = replace(run.config.eval.gsm8k, questions=None, max_new_tokens=rl.max_new_tokens, rows=rl.rollout_rows,
                       sampled_questions=None if sample else 0)
    summary = evaluate_gsm8k(engine, problems, settings, stage="rl", seed=seed).summary
    keys = ["accuracy", *(key for key in summary if sample and key.startswith("pass_at_"))]
    return {f"watch/{key}": summary[key] for key in keys}


@contextmanager
def train(run: Session, model: GPT, objective: Objective, schedule: Any, evaluate: Callable[[int], dict[str, float]],
          params: dict[str, Any], before: Callable[[], dict[str, float]] | None = None) -> Iterator[tuple[Any, Position]]:
    """Run the loop from wherever it stood to its end, then yield (log, position) to write the outputs.

    before: measured once, at step 0, and logged there.
    """
    import torch

    from paribus.model.accounting import flops_per_token
    from paribus.train.checkpoint import StateStore
    from paribus.train.loop import Hooks, Loop, Paused, Plan
    from paribus.train.optim import MuonAdamW, lr_factor

    config = run.config
    warmdown = getattr(schedule, "warmdown_fraction", 1.0)

    def factor(step: int) -> float:
        shape = lr_factor(step, schedule.steps, schedule.warmup_fraction, warmdown, schedule.final_lr_fraction)
        return schedule.lr_scale * shape

    store = StateStore(run.folder / "state", config.train.keep_states)
    plan = Plan(schedule.steps, factor, flops_per_token(model.config, model.vocab_size),
                runtime.peak_flops(run.hardware), config.train.save_seconds, config.train.log_every)
    forward = torch.compile(model) if run.hardware.compile else model
    if delivered(run):
        store.clear()
    state = store.load()
    if state:
        print(f"paribus {run.stage}: going on from step {state.step} of {schedule.steps}", file=sys.stderr)
    with Progress(run.stage, schedule.steps, "step") as bar, run.open_log(params, state.step if state else None) as log:
        hooks = Hooks(log.log, log.event, log.sync, log.rewind, evaluate, lambda step, metrics: bar.update(step, **metrics))
        loop = Loop(model, forward, MuonAdamW(model, config.optimizer), objective, plan, store, run.interrupt, hooks)
        if state:
            loop.restore(state)
        elif before is not None:
            log.log(0, before())
        try:
            loop.run()
        except Paused as paused:
            print(f"paribus {run.stage}: {paused}", file=sys.stderr)
            raise SystemExit(EXIT_PAUSED) from None
        model.eval()
        yield log, loop.position


def delivered(run: Session) -> bool:
    """Whether DVC has this run's outputs already. Asked for them again, it means from the start (`dvc repro -f`);
    otherwise a finished state is one whose process was killed before DVC took the outputs."""
    receipt = run.folder / "delivered.json"
    if not receipt.exists():
        return False
    lock = read_yaml("dvc.lock")["stages"].get(run.stage, {}) if Path("dvc.lock").exists() else {}
    return json.loads(receipt.read_text()) in [out.get("md5") for out in lock.get("outs", [])]


# ---------------------------------------------------------------- evaluation


def core() -> None:
    """CORE of checkpoints/base -> evals/core, metrics/core.json."""
    from paribus.evaluate.core import evaluate_core, write_items

    with session("core") as run:
        cfg = run.config.eval.core
        synthetic = json.loads((CORPUS / "manifest.json").read_text(encoding="utf-8"))["core"]["source"] == "world"
        with Progress("core") as bar, run.open_log({}) as log:
            result = evaluate_core(load_model(run, "base"), load_tokenizer(CHECKPOINTS / "base"), CORPUS / "core",
                                   max_per_task=cfg.max_per_task, batch_size=cfg.batch_size, synthetic=synthetic,
                                   cache=run.folder / "items", on_progress=bar.count)
            write_items(EVALS / "core", result)
            log.summary(result.summary() | {"missing": ", ".join(result.missing)})
            write_json(METRICS / "core.json", result.summary())


def gsm8k(stage: str) -> None:
    """Word problems answered by one checkpoint -> evals/gsm8k/<stage>."""
    from paribus.data import load_jsonl
    from paribus.evaluate.gsm8k import evaluate_gsm8k, write_items
    from paribus.generate import Engine

    with session(f"gsm8k_stage@{stage}") as run:
        cfg = run.config.eval.gsm8k
        problems = list(load_jsonl(CORPUS / f"problems/{cfg.split}.jsonl"))
        shots = list(load_jsonl(CORPUS / "problems/train.jsonl"))[: cfg.few_shot]
        engine = Engine(load_model(run, stage), load_tokenizer(CHECKPOINTS / stage))
        with Progress(f"gsm8k {stage}") as bar, run.open_log({}) as log:
            result = evaluate_gsm8k(engine, problems, cfg, stage=stage, shots=shots, seed=run.config.seed,
                                    cache=run.folder / "items", on_progress=bar.count)
            folder = EVALS / "gsm8k" / stage
            write_items(folder, result)
            log.summary(result.summary)
            for name in ("samples.json", "failures.jsonl"):
                log.artifact(folder / name, "answers")


def compare_stages() -> None:
    """evals/gsm8k/* -> metrics/gsm8k.json with paired comparisons of neighbours, plots/gsm8k.csv."""
    from paribus.evaluate.gsm8k import read_correct
    from paribus.evaluate.intervals import compare

    folder = EVALS / "gsm8k"
    metrics: dict[str, Any] = {stage: json.loads((folder / stage / "summary.json").read_text()) for stage in STAGES}
    correct = {stage: read_correct(folder / stage) for stage in STAGES}
    metrics["paired"] = {f"{a}_{b}": compare(correct[a], correct[b]) for a, b in zip(STAGES, STAGES[1:], strict=False)}
    metrics["dataset"] = json.loads((CORPUS / "manifest.json").read_text(encoding="utf-8"))["problems"]["source"]
    columns = ("accuracy", "ci_low", "ci_high")
    write_csv(PLOTS / "gsm8k.csv", ("stage", *columns), [(s, *(metrics[s][c] for c in columns)) for s in STAGES])
    write_json(METRICS / "gsm8k.json", metrics)


def report() -> None:
    """Everything above -> report/report.html, and the same as an MLflow run."""
    from paribus.report import build_report, save_figures

    with session("report") as run, run.open_log({}) as log:
        page = build_report(Path.cwd(), REPORT / "report.html")
        log.artifact(page)
        for figure in save_figures(Path.cwd(), run.folder / "figures"):
            log.artifact(figure, "figures")
        for path in sorted(PLOTS.glob("*.csv")):
            log.artifact(path, "plots")
    tracking.close_execution(run.config)


# ---------------------------------------------------------------- parts


def load_tokenizer(folder: Path = TOKENIZER) -> Tokenizer:
    from paribus.data.tokenizer import Tokenizer

    return Tokenizer.load(folder / "tokenizer.json")


def new_model(run: Session, vocab_size: int) -> GPT:
    """An untrained model on the session's device."""
    import torch

    from paribus.model.gpt import GPT

    model = GPT(run.config.model, vocab_size, getattr(torch, run.hardware.dtype))
    model.activation_checkpointing = run.config.train.activation_checkpointing
    return model.to(run.hardware.device)


def load_model(run: Session, stage: str) -> GPT:
    """The model of a stage's checkpoint on the session's device."""
    import torch

    from paribus.model.gpt import load_checkpoint

    model = load_checkpoint(CHECKPOINTS / stage, run.hardware.device, getattr(torch, run.hardware.dtype))
    model.activation_checkpointing = run.config.train.activation_checkpointing
    return model.eval()


def rows_of(schedule: Pretrain | Conversations, seq_len: int) -> int:
    """Rows of one optimiser step."""
    return max((schedule.batch_tokens or 0) // seq_len, 1)


def write_outputs(run: Session, log: tracking.RunLog, model: GPT, target: str, stage: str, summary: dict[str, Any]) -> None:
    """Checkpoint, curve, metrics: in that order, so that metrics stand for a stage that is done."""
    from paribus.model.gpt import save_checkpoint

    source = TOKENIZER if target == "base" else CHECKPOINTS / STAGES[STAGES.index(target) - 1]
    save_checkpoint(CHECKPOINTS / target, model, source / "tokenizer.json", run.provenance)
    write_curve(PLOTS / f"{stage}.csv", stage, log.rows())
    log.artifact(PLOTS / f"{stage}.csv", "plots")
    log.summary(summary)
    write_json(run.folder / "delivered.json", graph.dvc_digest(CHECKPOINTS / target))
    write_json(METRICS / f"{stage}.json", summary)


PROMPTS = (
    "How many are 12 and 30 together?",
    "Tell me about yourself.",
    "Say hello.",
)


def log_samples(run: Session, log: tracking.RunLog, model: GPT, words: Tokenizer) -> None:
    """What the model says to fixed prompts and to held-out problems, to be read and compared between runs."""
    from paribus.data import load_jsonl
    from paribus.data.chat import render_prompt
    from paribus.generate import Engine

    problems = [row["question"] for row in load_jsonl(CORPUS / "problems/validation.jsonl")][:5]
    prompts = [*PROMPTS, *problems]
    if run.stage == "pretrain":
        ids = [[words.bos, *words.encode(prompt)] for prompt in prompts]
    else:
        ids = [render_prompt([{"role": "user", "content": prompt}], words) for prompt in prompts]
    room = model.config.seq_len // 2
    ids = [row[:room] for row in ids]
    answers = Engine(model, words).generate(ids, max_new_tokens=min(room, 100))
    text = "\n\n".join(f"> {prompt}\n\n{words.decode(group[0].tokens)}" for prompt, group in zip(prompts, answers, strict=True))
    path = run.folder / "samples.md"
    path.write_text(f"# {run.stage}: greedy answers\n\n{text}\n", encoding="utf-8")
    log.artifact(path, "samples")
