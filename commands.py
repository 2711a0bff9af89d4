"""The settings of every `vlrm` command, and the few lines that run it. Imports of the library stay inside the functions.

A class's docstring is its command's help page; field names are the YAML keys and the `--key` options.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from typing import Any, Literal

from .config import JSON
from .types import InputError


def key(help: str, default: Any = ..., **options: Any) -> Any:
    """A dataclass field with its help text; without a default it is required."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": help})
    return field(metadata={"help": help}, **({} if default is ... else {"default": default}), **options)


@dataclass
class Quickstart:
    """The whole way on the built-in tiny models: data, training, search, report.

    From the shipped checkpoints: samples the policy, trains a GM-PRM, searches held-out problems with every arm and control, and
    writes results.json, accuracy.png and report.html into a folder. Run again with the same folder, it goes on where it stopped."""

    out: str = key("folder for all results")
    problems: int = key("held-out problems, over all worlds", 600)
    seed: int = key("seed of problems, sampling and training", 0)
    n: int = key("candidates for each problem", 8)
    temperature: float = key("sampling temperature of the policy", 0.6)
    policy: str = key("the policy: a built-in name, or a model folder", "tiny-policy")
    base: str = key("what the GM-PRM is trained from: a built-in name, or a model folder", "tiny")
    train_problems: int = key("problems that step records are made from", 13500)
    samples: int = key("sampled solutions for each training problem", 1)
    corruptions: int = key("corrupted solutions for each training problem", 2)
    replay: int = key("samples of the base's own training data that are mixed in", 1500)
    learning_rate: float = key("peak learning rate", 8e-4)
    correction_weight: float = key("weight of the loss at corrected steps", 3.0)
    batch_size: int = key("records in a training step", 32)
    max_tokens: int = key("longest solution, in tokens", 160)
    no_error: str = key("Refined Best-of-N where the critic finds no error: keep, resample or random_prefix", "keep")


def run_quickstart(settings: Quickstart) -> None:
    from .policy.quickstart import run

    run(**asdict(settings))


@dataclass
class Synth:
    """Makes problems, or step records with exact critiques, from the procedural worlds.

    `--what problems` writes a folder with problems.jsonl and images/, which `vlrm search` reads. `--what steps` writes a JSONL file of step
    records, which `vlrm train` reads: corrupted solutions and, with a policy, sampled ones, every step judged by the world."""

    output: str = key("folder of the problems, or JSONL file of the step records")
    what: Literal["problems", "steps"] = key("what to make", "problems")
    worlds: list[str] = key("names of worlds; all if none is given", [])
    split: str = key("train, dev or test; no picture occurs in two splits", "train")
    n: int = key("problems, shared evenly by the worlds", 1000)
    seed: int = key("problem i of a world, split and seed is always the same", 0)
    policy: str | None = key("steps: engine that solutions are sampled from, such as tiny-policy or transformers:PATH", None)
    samples: int = key("steps: sampled solutions for each problem, with a policy", 1)
    corruptions: int = key("steps: corrupted solutions for each problem", 1)
    temperature: float = key("steps: sampling temperature", 1.0)


def run_synth(settings: Synth) -> None:
    from .data_synth import WORLDS, make_problems, make_step_records

    worlds = settings.worlds or list(WORLDS)
    common = (worlds, settings.split, settings.n, settings.seed, settings.output)
    if settings.what == "problems":
        say(f"{len(make_problems(*common))} problems in {settings.output}")
        return
    from .serving import load_engine

    policy = load_engine(settings.policy) if settings.policy else None
    records = make_step_records(
        *common, policy=policy, samples=settings.samples, corruptions=settings.corruptions, temperature=settings.temperature
    )
    say(f"{len(records)} step records in {settings.output}")


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
_LABEL_ENGINES = ("policy_options", "completer_options", "judge_options", "judge_style", "judge_tokens")


def run_synth_labels(settings: SynthLabels) -> None:
    import os
    from functools import partial

    from .data_synth.labels.file import shard_path
    from .data_synth.labels.merge import merge_labels

    if settings.ray_workers:
        from .data_synth.labels.on_ray import label_on_ray

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

    from .data_synth.labels.file import label_file, model_stamp
    from .data_synth.labels.judge import judge_solutions, open_judge
    from .data_synth.labels.label import check_settings, label_problems
    from .data_synth.labels.tell import tell
    from .rm.checkers import load_checker
    from .rm.problems import read_problems
    from .serving import load_engine

    check_settings(settings.method, settings.rule, settings.judge is not None)
    kept = {name: value for name, value in asdict(settings).items() if name not in _NOT_IN_LABELS}
    engines = ("policy", "completer", "weak", "judge")
    plain = {n: v for n, v in kept.items() if n not in engines + _LABEL_ENGINES} | {"checker": load_checker(settings.checker)}
    label_problems([], _NoEngine(), judge=(lambda none: ([], {})) if settings.judge else None, **plain)  # has the checks of the others
    problems = read_problems(settings.problems, image_root=settings.image_root, limit=settings.limit)
    if settings.method != "judge" and all(problem.answer is None for problem in problems):
        raise InputError(
            f"{settings.problems}: no problem has a gold answer (column answer), so no continuation can be checked; use --method judge"
        )
    names = {name: getattr(settings, name) for name in engines}
    options = {"policy": settings.policy_options, "completer": settings.completer_options, "weak": settings.completer_options}
    judging: dict[str, Any] = {}
    if settings.judge:
        names["judge"], options["judge"], judging = open_judge(settings.judge, settings.judge_style)
        options["judge"] = {**options["judge"], **settings.judge_options}
        judging = {"max_tokens": settings.judge_tokens, **judging}

    @cache
    def load(name: str) -> Any:
        with fitting(f"{name}_options", names[name]):
            return load_engine(names[name], **options[name])

    def label(batch: Sequence[Any], wrap: Callable[[Callable[[], Any], str], Any]) -> Any:
        used = {name: wrap(partial(load, name), names[name]) for name in engines if names[name]}
        judge = partial(judge_solutions, engine=used["judge"], **judging) if settings.judge else None
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
    from .data_synth.labels.tell import label_balance

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
    from .data_synth.labels.merge import merge_labels

    print_labels(merge_labels(settings.inputs, settings.output), settings.output)


@dataclass
class Train:
    """Trains a reward model on step records.

    Step records: JSONL or parquet with the columns question, steps, images, and labels (critiques with a correction, or judge, or
    mc_scores); VisualPRM400K's own files are read as they are. The output folder is what vlrm search and vlrm.load_scorer take. Run
    again after an interruption, it goes on from its last checkpoint."""

    model: str = key("model to start from: a folder, a hub name, or the built-in tiny")
    data: str = key("step records: .jsonl, .json or .parquet")
    output_dir: str = key("folder for the trained scorer")
    method: Literal["gm_prm", "vl_prm"] = key("gm_prm writes critiques, vl_prm answers every step with + or -", "gm_prm")
    eval_data: str | None = key("step records that the loss is also measured on", None)
    image_root: str | None = key("folder that image paths are relative to; else the data file's", None)
    scorer_settings: JSON = key('settings stored with the scorer, such as {"aggregation": "min"}', None)
    resume: bool = key("go on from the last checkpoint; false starts afresh", True)
    keep_checkpoints: bool = key("keep the checkpoints when the training is done", False)
    progress: bool = key("show a bar", True)
    words: list[str] = key("gm_prm: the two verdict words, the positive one first", ["Correct", "Incorrect"])
    stop_at_first_error: bool = key("gm_prm: targets end after the first wrong step", False)
    instructions: str = key("gm_prm: text put after every prompt, in training and in use", "")
    consistency: Literal["exact", "first_error", "outcome"] = key("gm_prm: how critiques must agree with Monte-Carlo labels", "first_error")
    verdict_weight: float = key("gm_prm: weight of the loss at verdict words; 1 is the plain loss", 3.0)
    correction_weight: float = key("gm_prm: weight of the loss at the corrected step; 1 is the plain loss", 1.0)
    verdict_words: list[str] = key("vl_prm: the verdict words, the positive one first; if none are given + and -, for advantage + = -", [])
    system: str | None = key("vl_prm: system text; if none is given the paper's in our words, an empty one is left out", None)
    system_role: bool | None = key(
        "vl_prm: a system turn, or the text in the first user's turn; if not said, as the chat template can", None
    )
    headers: bool = key("vl_prm: show the headers of sections whose kinds are known", True)
    target: Literal["hard", "soft", "value", "advantage"] = key("vl_prm: 1 or 0, shares, Monte-Carlo above the threshold, change", "hard")
    label_source: Literal["auto", "labels", "judge", "critiques", "mc_scores"] = key("vl_prm: column that labels are taken from", "auto")
    threshold: float = key("vl_prm: a share is negative unless it is above this", 0.0)
    after_error: Literal["truncate", "negative", "keep"] = key("vl_prm: steps after the first negative one", "truncate")
    label_kinds: list[str] = key("vl_prm: sections that are trained on", ["perception", "reasoning"])
    loss: Literal["vocabulary", "choice"] | None = key(
        "vl_prm: over all words or the verdict words; if not said, as the target wants", None
    )
    head: int = key("vl_prm: 1 or 2 labels of a linear head on the token that ends a step, instead of words", 0)
    lora: bool = key("train a LoRA adapter instead of all weights", False)
    lora_settings: JSON = key('settings of peft.LoraConfig, such as {"r": 16, "lora_alpha": 32}; implies lora', None)
    freeze_vision: bool = key("leave the picture encoder as it is", True)
    epochs: int = key("passes over the data", 1)
    max_steps: int | None = key("optimizer steps, instead of epochs", None)
    learning_rate: float | None = key("peak learning rate; if none is given 1e-5, with LoRA 1e-4", None)
    schedule: str = key("learning-rate schedule of transformers", "cosine")
    warmup: float = key("warm-up: a share of the steps below 1, else their number", 0.03)
    weight_decay: float = key("weight decay", 0.0)
    max_grad_norm: float = key("gradients are clipped to this norm", 1.0)
    batch_size: int = key("records on each device at once", 8)
    gradient_accumulation: int = key("batches in an optimizer step", 1)
    max_length: int | None = key("records of more tokens are dropped and counted", None)
    bf16: bool | None = key("bfloat16 arithmetic; if not said, where the machine is quick at it", None)
    dtype: str | None = key("type of the weights; if not said float32, with LoRA and bf16 bfloat16", None)
    attention: str | None = key("attention of transformers: sdpa, flash_attention_2, eager", None)
    gradient_checkpointing: bool = key("less memory, more time", False)
    workers: int = key("processes that make batches", 1)
    save_steps: int = key("steps between checkpoints", 500)
    logging_steps: int = key("steps between lines of the log", 10)
    seed: int = key("seed of order and dropout", 0)


# Keys of `Train` that belong to one method only.
_TRAIN_ONLY = {
    "gm_prm": ("words", "stop_at_first_error", "instructions", "consistency", "verdict_weight", "correction_weight"),
    "vl_prm": (
        "verdict_words", "system", "system_role", "headers", "target", "label_source", "threshold", "after_error", "label_kinds", "loss",
        "head",
    ),
}  # fmt: skip


def _default(item: Any) -> Any:
    return item.default if item.default_factory is MISSING else item.default_factory()


def train_arguments(settings: Train) -> dict[str, Any]:
    """The settings as arguments of the method's training function."""
    arguments, defaults = asdict(settings), {item.name: _default(item) for item in fields(Train)}
    for method, names in _TRAIN_ONLY.items():
        if method != settings.method:
            for name in names:
                if arguments.pop(name) != defaults[name]:
                    raise InputError(f"{name} belongs to --method {method}, not {settings.method}; leave it out")
    if settings.method == "vl_prm":
        arguments["words"] = arguments.pop("verdict_words") or None
        if arguments["system"] is None:
            del arguments["system"]
    arguments["records"], arguments["eval_records"] = arguments.pop("data"), arguments.pop("eval_data")
    arguments["lora"] = arguments.pop("lora_settings") or arguments["lora"]
    del arguments["method"]
    return arguments


def run_train(settings: Train) -> None:
    from .prm.train import train_gm_prm
    from .prm.train_vl_prm import train_vl_prm

    {"gm_prm": train_gm_prm, "vl_prm": train_vl_prm}[settings.method](**train_arguments(settings))
    say(f"trained scorer in {settings.output_dir}")


@dataclass
class Search:
    """Searches a file of problems with a policy and a scorer.

    Problems: JSONL or parquet with the columns id, question, images (or image) and answer (null where it is unknown). One JSON line
    for each problem is written: the answer, every candidate with its steps, verdicts and correction, and the cost. With gold
    answers the accuracy is printed with its interval. Run again after an interruption, it goes on where it stopped."""

    problems: str = key("file of problems: .jsonl, .json or .parquet")
    policy: str = key("policy engine: transformers:PATH, vllm:PATH, http://host:port/v1, or tiny-policy")
    output: str = key("JSONL file for the results")
    scorer: str | None = key("folder that vlrm train wrote, or a URL; self_consistency needs none", None)
    method: Literal[
        "self_consistency", "best_of_n", "weighted_best_of_n", "refined_best_of_n", "one_shot", "guided_greedy", "beam_search", "dvts"
    ] = key("search method", "refined_best_of_n")
    n: int = key("candidates for each problem", 8)
    seed: int = key("seed of all sampling", 0)
    temperature: float = key("sampling temperature", 0.8)
    top_p: float = key("nucleus sampling", 1.0)
    top_k: int = key("top-k sampling; 0 is off", 0)
    max_tokens: int = key("longest solution, in tokens", 1024)
    stop: list[str] = key("strings that end a solution", [])
    instruction: str = key("text put after every question, such as how to write the steps and the answer", "")
    no_error: Literal["resample", "keep", "random_prefix"] = key("refined: where no step is judged wrong", "resample")
    no_correction: Literal["resample", "resample_step"] = key("refined: where there is no usable correction", "resample")
    fix: bool = key("refined: false is the control that goes on from the same place without the correction", True)
    reuse_scores: bool = key("refined: keep the first critiques for the final choice", True)
    rounds: int = key("refined: how often a candidate may be corrected", 1)
    beam_width: int = key("beam_search, dvts: continuations of each kept partial solution; n is a multiple of it", 4)
    max_rounds: int | None = key("step searches: steps at most; if not said 40, for guided_greedy 100", None)
    rank: str = key("step searches: partial solutions are compared by last, mean, min, product, geometric_mean, or score", "last")
    step_stop: list[str] = key("step searches: strings that end a step; if none is given the next Step line, or a blank line", [])
    dedupe: bool = key("step searches: equal partial solutions count once", True)
    max_policy_tokens: int | None = key("step searches: tokens that the policy may write for one problem", None)
    scorer_engine: Literal["transformers", "vllm"] = key("engine for a scorer folder", "transformers")
    scorer_method: Literal["gm_prm", "vl_prm"] = key("what a scorer that is a URL is; a folder says so itself", "gm_prm")
    scorer_settings: JSON = key('settings of the scorer, such as {"aggregation": "min"}', None)
    scorer_options: JSON = key('options of the scorer\'s engine, such as {"gpu_memory_utilization": 0.4}', None)
    policy_options: JSON = key("options of the policy's engine", None)
    policy_adapter: str | None = key("folder of a LoRA adapter for the policy", None)
    image_root: str | None = key("folder that image paths are relative to; else the problems file's", None)
    limit: int | None = key("only the first problems of the file", None)
    chunk: int = key("problems searched together, and saved together", 64)


# What a result does not depend on: these may change between an interrupted run and the one that goes on.
_NOT_IN_RESULTS = ("problems", "output", "image_root", "limit", "chunk")
_REFINED = ("no_error", "no_correction", "fix", "reuse_scores", "rounds")
_STEPS = ("rank", "step_stop", "dedupe", "max_policy_tokens", "max_rounds")
_OWN = {
    "refined_best_of_n": _REFINED,
    "guided_greedy": _STEPS,
    "beam_search": (*_STEPS, "beam_width"),
    "dvts": (*_STEPS, "beam_width"),
}
_SAMPLING = ("n", "seed", "temperature", "top_p", "top_k", "max_tokens", "stop", "instruction")


def run_search(settings: Search) -> None:
    from functools import cache, partial

    from .policy import SEARCH
    from .policy.search_file import report, search_file
    from .rm import load_scorer
    from .rm.problems import read_problems
    from .serving import load_engine

    scored = settings.method != "self_consistency"
    if scored and not settings.scorer:
        raise InputError(f"{settings.method} needs --scorer, a folder that `vlrm train` wrote or a URL")
    names = _SAMPLING + _OWN.get(settings.method, ())
    chosen = {name: getattr(settings, name) for name in names}
    if chosen.get("max_rounds", 0) is None:
        del chosen["max_rounds"]
    method = partial(SEARCH[settings.method], **chosen)
    method([], None, None) if scored else method([], None)  # checks the settings before anything is loaded
    problems = read_problems(settings.problems, image_root=settings.image_root, limit=settings.limit)

    @cache
    def models() -> tuple[Any, ...]:
        with fitting("policy_options", settings.policy):
            policy = load_engine(settings.policy, adapter=settings.policy_adapter, **settings.policy_options)
        if not scored:
            return (policy,)
        with fitting("scorer_options", settings.scorer):
            named = {} if settings.scorer_method == "gm_prm" else {"method": settings.scorer_method}
            return policy, load_scorer(
                settings.scorer, settings.scorer_engine, settings.scorer_options, **named, **settings.scorer_settings
            )

    remembered = {name: value for name, value in asdict(settings).items() if name not in _NOT_IN_RESULTS}
    with progress(settings.method, len(problems)) as done:
        records = search_file(
            problems,
            lambda batch: method(batch, *models()),
            settings.output,
            settings={**remembered, "policy_files": folder_stamp(settings.policy), "scorer_files": folder_stamp(settings.scorer)},
            chunk=settings.chunk,
            progress=done,
        )
    print_report(settings.method, report(records))
    say(f"results in {settings.output}")


@contextmanager
def fitting(key: str, spec: str) -> Iterator[None]:
    """An engine option that does not exist is the user's mistake, not ours."""
    try:
        yield
    except TypeError as error:
        raise InputError(f"{key} do not fit {spec}: {error}") from error


def folder_stamp(spec: str | None) -> str | None:
    """Names, sizes and times of a local model's files in short, so that results of an older training do not pass for a newer one's."""
    import hashlib
    from pathlib import Path

    folder = Path((spec or "").split(":", 1)[-1]).expanduser()
    if not spec or not folder.is_dir():
        return None
    files = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(folder.iterdir()) if path.is_file()]
    return hashlib.blake2b(repr(files).encode(), digest_size=6).hexdigest()


def print_report(method: str, figures: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    def percent(*values: float) -> str:
        return " to ".join(f"{100 * value:.1f}" for value in values) + " %"

    say(f"{method}: {figures['problems']} problems, {figures['with_gold']} with a gold answer")
    table = Table(show_header=False)
    table.add_column()
    table.add_column(justify="right")
    if figures["with_gold"]:
        table.add_row("accuracy", percent(figures["accuracy"]))
        table.add_row("95 % interval", percent(*figures["ci95"]))
        table.add_row("any candidate right", percent(figures["oracle"]))
    for name in ("policy_tokens", "scorer_tokens", "calls", "unscored"):
        table.add_row(name.replace("_", " "), f"{figures[name]:,}")
    table.add_row("seconds", f"{figures['seconds']:.1f}")
    Console().print(table)


@dataclass
class Convert:
    """Step data from one format to another: what others publish in, what other trainers read out.

    In: step records, VisualPRM400K, VL-PRM300K, PRM800K, Math-Shepherd, URSA, chats of steps and verdicts, VisualProcessBench, VLRMBench,
    BIG-Bench-Mistake. Out: step records, or chats for TRL, LLaMA-Factory and ms-swift. The formats are described in prm/importers.py and
    prm/exporters.py."""

    input: str = key("file of step data: .jsonl, .json or .parquet")
    output: str = key("file to write: .jsonl or .parquet (records, trl), .json or .jsonl (llamafactory), .jsonl (ms_swift)")
    to: Literal["trl", "llamafactory", "ms_swift", "records"] = key("what to write", "trl")
    format: str = key("format of the input: auto, or a name from prm/importers.py", "auto")
    style: Literal["verdicts", "critique"] = key("chats: one + or - a step, or GM-PRM's critique", "verdicts")
    stop_at_first_error: bool | None = key("chats end after the first wrong step; if not said, verdicts do, critiques do not", None)
    threshold: float = key("a numeric label or Monte-Carlo score above this counts as right", 0.0)
    neutral: Literal["null", "right", "wrong"] = key("what a person's neutral rating becomes", "null")
    image_root: str | None = key("folder that image paths are relative to; else the input's", None)
    limit: int | None = key("only the first rows of the file", None)


def run_convert(settings: Convert) -> None:
    from .prm.convert import convert_file

    with progress("rows", None) as done:
        counts = convert_file(**asdict(settings), progress=done)
    say("; ".join(f"{name} {count:,}" for name, count in counts.items()) + f"; in {settings.output}")


@dataclass
class EvalSteps:
    """Measures how well a scorer judges steps, on solutions whose step labels are known.

    Data: any format that `vlrm convert` reads. Prints and writes every step metric with its interval beside the random, always-right and
    step-length baselines; the output folder gets results.json, reliability.png, report.html with the worst cases, and scores.jsonl. Run
    again after an interruption, it goes on where it stopped. `--scorer none` measures the baselines alone."""

    data: str = key("file of solutions with step labels: .jsonl, .json or .parquet")
    scorer: str = key("folder that vlrm train wrote, a URL, or none")
    output: str = key("folder for the results")
    format: str = key("format of the data: auto, or a name from prm/importers.py", "auto")
    scorer_engine: Literal["transformers", "vllm"] = key("engine for a scorer folder", "transformers")
    scorer_settings: JSON = key('settings of the scorer, such as {"max_tokens": 4096}', None)
    scorer_options: JSON = key("options of the scorer's engine", None)
    neutral: Literal["null", "right", "wrong"] = key("what a person's neutral rating becomes; null leaves the step out", "null")
    threshold: float | None = key("a step counts as judged right from this score on; else as the scorer's own verdict says", None)
    truth_threshold: float = key("a numeric label or Monte-Carlo score above this is right", 0.0)
    image_root: str | None = key("folder that image paths are relative to; else the data file's", None)
    limit: int | None = key("only the first rows of the file", None)
    chunk: int = key("solutions scored together, and saved together", 32)
    resamples: int = key("bootstrap resamples of solutions", 1000)
    seed: int = key("seed of the resampling and the folds", 0)
    worst: int = key("worst cases on the page", 30)


def run_eval_steps(settings: EvalSteps) -> None:
    from .prm.evaluate import evaluate_steps

    remembered: dict[str, Any] = {}
    make = None
    if settings.scorer != "none":
        from .rm import load_scorer

        names = ("scorer", "scorer_engine", "scorer_settings", "scorer_options")
        remembered = {name: getattr(settings, name) for name in names} | {"scorer_files": folder_stamp(settings.scorer)}

        def make() -> Any:
            with fitting("scorer_options", settings.scorer):
                return load_scorer(settings.scorer, settings.scorer_engine, settings.scorer_options, **settings.scorer_settings)

    names = ("format", "neutral", "threshold", "truth_threshold", "image_root", "limit", "chunk", "resamples", "seed", "worst")
    with progress("solutions", None) as done:
        results = evaluate_steps(
            settings.data,
            settings.output,
            make,
            **{name: getattr(settings, name) for name in names},
            settings=remembered,
            progress=done,
            loaded=lambda total: done(0, total),
        )
    print_step_figures(results)
    say(f"results and report.html in {settings.output}")


def print_step_figures(results: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from .prm.evaluate_report import metric_head, metric_rows, summary

    for line in summary(results):
        say(line)
    for title, metrics in (("", results["metrics"]), ("what was not scored counts as unreadable", results.get("all"))):
        if metrics:
            table = Table(title=title or None, title_justify="left")
            for index, column in enumerate(metric_head(metrics)):
                table.add_column(column, justify="right" if index else "left")
            for row in metric_rows(metrics):
                table.add_row(*row)
            Console().print(table)


@dataclass
class Doctor:
    """Tells what is installed, which engines work here, and what to install.

    Looks at package versions, the engines (vLLM is really imported), the processor, the GPUs and the disk."""

    json: bool = key("print one JSON object", False)
    url: str | None = key("also ask this server: http://host:port/v1", None)


def run_doctor(settings: Doctor) -> None:
    from .doctor import examine, page

    findings = examine(settings.url)
    if settings.json:
        import json

        print(json.dumps(findings, indent=2))
    else:
        say(page(findings))


@contextmanager
def progress(name: str, total: int | None) -> Iterator[Any]:
    """A bar on stderr; yields a function that is told how many are done, and of how many once that is known."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()]
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(name, total=total)
        yield lambda done, total=total: bar.update(task, completed=done, **({} if total is None else {"total": total}))


def say(text: str) -> None:
    print(text, flush=True)
