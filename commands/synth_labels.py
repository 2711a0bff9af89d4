"""`vlrm synth labels` and `vlrm synth merge`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from ..config import JSON
from ..types import InputError
from .common import fitting, key, say


@dataclass
class SynthLabels:
    """Makes step labels from any policy and any problems with gold answers.

    Samples solutions, estimates every step by continuations of its prefix (--method flat, binary or omega) or asks a judge, and makes
    labels by a rule: hard, soft, advantage, hybrid (VL-PRM), consensus (GM-PRM), judge. Writes a JSONL file of step records, and beside it
    a report that counts what became of everything. Run again after an interruption, it goes on where it stopped. With --shard i/n it makes
    one part of n, and vlrm synth merge puts the parts together."""

    problems: str = key("file of problems: .jsonl, .json or .parquet, as vlrm search reads it")
    policy: str = key("engine that solutions are sampled from: transformers:PATH, vllm:PATH, http://host:port/v1, or tiny-policy")
    output: str = key("JSONL file for the step records; shards are put beside it")
    method: Literal["flat", "binary", "omega", "judge"] = key("how steps are estimated", "flat")
    rule: Literal["hard", "soft", "advantage", "judge", "hybrid", "consensus"] = key("how estimates become labels", "hard")
    judge: str | None = key("engine that judges steps, or a folder that vlrm train wrote", None)
    judges: list[str] = key("further judges: a solution is kept where they agree with the first", [])
    judges_agree: Literal["first_error", "outcome", "read"] = key(
        "further judges: all name the same first error, or all find any or none, or all can be read", "first_error"
    )
    judge_style: Literal["analysis", "critique"] = key("how the judge is asked to write; a trained critic writes critiques", "analysis")
    completer: str | None = key("engine that continues prefixes; else the policy", None)
    weak: str | None = key("second completer: steps are labelled where both agree", None)
    samples: int = key("solutions of each problem", 1)
    k: int = key("continuations of each prefix", 8)
    temperature: float = key("sampling temperature of solutions and continuations", 1.0)
    top_p: float = key("nucleus sampling", 1.0)
    top_k: int = key("top-k sampling; 0 is off", 0)
    max_tokens: int = key("longest solution or continuation, in tokens", 1024)
    judge_tokens: int = key("longest judgement, in tokens; a trained critic's own limit wins", 2048)
    instruction: str = key("text put after every question, such as how to write the steps and the answer", "")
    checker: str = key("how answers are checked: auto, choice, numeric:TOLERANCE, math, or package.module:function", "auto")
    unfinished: Literal["drop", "wrong"] = key("what a continuation is that runs into max_tokens", "drop")
    max_steps: int = key("a solution's paragraphs are merged into at most so many steps", 12)
    threshold: float = key("a step is wrong if its share of right continuations is not above this", 0.0)
    stop_at_zero: bool = key("flat: step by step, up to the first wrong one", False)
    siblings: bool = key("binary: steps shared with a right solution of the same problem are right, unsampled", True)
    tree: JSON = key('omega: alpha, beta, length, c_puct, searches, budget, such as {"searches": 50}', None)
    consistency: Literal["exact", "first_error", "outcome"] = key("consensus: how judge and rollouts must agree", "first_error")
    after_error: Literal["null", "wrong", "keep"] = key("labels after the first error: none, 0, or as estimated", "null")
    advantage: Literal["linear", "sign"] = key("advantage: (1 + a) / 2, or better, neutral, worse as 1, 0.5, 0", "linear")
    insertions: int = key("copies of each right solution with one error put in", 0)
    world_kinds: bool = key("steps of a world's problems get the kind of what they claim, perception or reasoning", True)
    seed: int = key("seed of all sampling", 0)
    shard: str = key("i/n makes part i of n of the problems", "1/1")
    ray_workers: int = key("run under Ray Data with so many workers; 0 is without", 0)
    shards: int = key("with ray_workers: parts that the problems are cut into", 8)
    ray_options: JSON = key('what Ray gives each worker, such as {"num_gpus": 1}', None)
    policy_options: JSON = key("options of the policy's engine", None)
    completer_options: JSON = key("options of the completers' engines", None)
    judge_options: JSON = key("options of the judge's engine", None)
    image_root: str | None = key("folder that image paths are relative to; else the problems file's", None)
    limit: int | None = key("only the first problems of the file", None)
    chunk: int = key("problems labelled together, and saved together", 32)
    batch: int = key("most sequences in one call of an engine; each call is saved", 4096)


_NOT_IN_LABELS = ("problems", "output", "image_root", "limit", "chunk", "batch", "shard", "shards", "ray_workers", "ray_options")
_LABEL_ENGINES = ("policy_options", "completer_options", "judge_options", "judge_style", "judge_tokens", "judges", "judges_agree")


def run_synth_labels(settings: SynthLabels) -> None:
    import os
    from functools import partial

    from ..data_synth.labels.file import shard_path
    from ..data_synth.labels.merge import merge_labels

    if settings.ray_workers:
        from ..data_synth.labels.on_ray import label_on_ray

        here = {name: os.path.abspath(path) for name in ("problems", "output", "image_root") if (path := getattr(settings, name))}
        make_runner = partial(label_runner, replace(settings, **here))  # a worker has a folder of its own
        make_runner()  # has the checks
        label_on_ray(make_runner, settings.shards, settings.ray_workers, **settings.ray_options)
        parts = [shard_path(settings.output, (i, settings.shards)) for i in range(1, settings.shards + 1)]
        report = merge_labels(parts, settings.output)
        print_labels(report, settings.output)
        return
    shard = parse_shard(settings.shard)
    print_labels(label_runner(settings)(shard), str(shard_path(settings.output, shard)))


def label_runner(settings: SynthLabels) -> Callable[[tuple[int, int]], dict[str, Any]]:
    """Makes one shard after another with engines that are loaded when they are first needed. Raises InputError before any is."""
    from functools import cache, partial

    from ..data_synth.labels.file import label_file, model_stamp
    from ..data_synth.labels.judge import agreeing_judges, judge_solutions, open_judge
    from ..data_synth.labels.label import check_settings, label_problems
    from ..data_synth.labels.tell import tell
    from ..rm.checkers import load_checker
    from ..rm.problems import read_problems
    from ..serving import load_engine

    check_settings(settings.method, settings.rule, settings.judge is not None)
    if settings.judges and settings.judge is None:
        raise InputError("--judges names further judges; name the first one, whose judgement is kept, with --judge")
    kept = {name: value for name, value in asdict(settings).items() if name not in _NOT_IN_LABELS}
    judges = {"judge": settings.judge} if settings.judge else {}
    judges |= {f"judge_{number}": spec for number, spec in enumerate(settings.judges, 2)}
    engines = ("policy", "completer", "weak", *judges)
    plain = {n: v for n, v in kept.items() if n not in (*engines, "judge", *_LABEL_ENGINES)} | {"checker": load_checker(settings.checker)}
    label_problems([], _NoEngine(), judge=(lambda none: ([], {})) if settings.judge else None, **plain)  # has the checks of the others
    problems = read_problems(settings.problems, image_root=settings.image_root, limit=settings.limit)
    if settings.method != "judge" and all(problem.answer is None for problem in problems):
        raise InputError(
            f"{settings.problems}: no problem has a gold answer (column answer), so no continuation can be checked; use --method judge"
        )
    names = {name: getattr(settings, name) for name in ("policy", "completer", "weak")}
    options = {"policy": settings.policy_options, "completer": settings.completer_options, "weak": settings.completer_options}
    judging: dict[str, dict[str, Any]] = {}
    for name, spec in judges.items():
        names[name], options[name], asked = open_judge(spec, settings.judge_style)
        options[name] = {**options[name], **settings.judge_options}
        judging[name] = {"max_tokens": settings.judge_tokens, **asked}

    @cache
    def load(name: str) -> Any:
        with fitting("judge_options" if name in judges else f"{name}_options", names[name]):
            return load_engine(names[name], **options[name])

    def label(batch: Sequence[Any], wrap: Callable[[Callable[[], Any], str], Any]) -> Any:
        used = {name: wrap(partial(load, name), names[name]) for name in engines if names[name]}
        asked = [partial(judge_solutions, engine=used[name], **judging[name]) for name in judges]
        judge = agreeing_judges(asked, settings.judges_agree) if len(asked) > 1 else next(iter(asked), None)
        return label_problems(batch, used["policy"], completer=used.get("completer"), weak=used.get("weak"), judge=judge, **plain)

    stamps = {f"{name}_files": model_stamp(names[name]) for name in engines}

    def run(shard: tuple[int, int]) -> dict[str, Any]:
        return label_file(
            problems, label, settings.output, settings={**kept, **stamps}, shard=shard, chunk=settings.chunk, batch=settings.batch,
            progress=tell(shard, say),
        )  # fmt: skip

    return run


class _NoEngine:
    """Stands for an engine while settings are checked."""

    name = ""

    def generate(self, requests: Sequence[Any]) -> list[Any]:
        return []


def parse_shard(text: str) -> tuple[int, int]:
    index, _, count = text.partition("/")
    if not (index.isdigit() and count.isdigit()):
        raise InputError(f"shard must be i/n, such as 2/8 for the second of eight, got {text!r}")
    return int(index), int(count)


def print_labels(report: Mapping[str, Any], path: str) -> None:
    """What became of everything. Raises InputError where that is no record at all."""
    from ..data_synth.labels.tell import label_balance

    counts = report["counts"]
    for name, number in counts.items():
        say(f"  {name.replace('_', ' ')}: {number:,}")
    if not counts.get("problems"):
        say("no problem falls to this shard")
        return
    if not counts.get("records"):
        limit = report["settings"].get("max_tokens")
        reason = (
            f"all solutions ran into max_tokens {limit}; raise it"
            if counts.get("solutions_unfinished", 0) == counts.get("solutions")
            else "the counts above say why"
        )
        raise InputError(f"no record was made of {counts.get('problems', 0)} problems: {reason}")
    say(f"{counts['records']} step records in {path}, {label_balance(counts)}; the counts are in {path}.report.json")


@dataclass
class SynthMerge:
    """Puts the shards that vlrm synth labels made into one file.

    Refuses gaps, duplicates, damaged files and shards of different settings. The merged file is byte for byte what one run would have
    written."""

    output: str = key("JSONL file for all step records")
    inputs: list[str] = key("the shards; if none is given, those named after the output that lie beside it", [])


def run_synth_merge(settings: SynthMerge) -> None:
    from ..data_synth.labels.merge import merge_labels

    print_labels(merge_labels(settings.inputs, settings.output), settings.output)
