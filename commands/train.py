"""`vlrm train`: what every method takes, and for each method its own keys.

A method joins with a settings class and a line in `METHODS`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from importlib import import_module
from typing import Any, Literal

from ..config import JSON, given, nearest
from ..types import InputError
from .common import folder_stamp, key, say


@dataclass(kw_only=True)
class Train:
    """Trains a reward model. `--method` says which; `vlrm train --method NAME --help` lists what that method takes.

    The output folder is what vlrm search, vlrm eval and vlrm.load_scorer take. Run again after an interruption, it goes on from its
    last checkpoint."""

    model: str = key("model to start from: a folder, a hub name, or the built-in tiny")
    data: str = key("data to train on, in a file (.jsonl, .json, .parquet); preferences and ratings also a folder or a hub id")
    output_dir: str = key("folder for the trained scorer")
    method: str = key("what to train: gm_prm, vl_prm, paco, bradley_terry, regression, dpo_judge, or a policy: grpo", "gm_prm")
    eval_data: str | None = key("data that the loss is also measured on", None)
    image_root: str | None = key("folder that image paths are relative to; else the data file's", None)
    scorer_settings: JSON = key('settings stored with the scorer, such as {"aggregation": "min"}', None)
    resume: bool = key("go on from the last checkpoint; false starts afresh", True)
    keep_checkpoints: bool = key("keep the checkpoints when the training is done", False)
    progress: bool = key("show a bar", True)
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


@dataclass(kw_only=True)
class TrainGMPRM(Train):
    """Trains a GM-PRM: it critiques every step, image and logic apart, and rewrites the first wrong one (arXiv 2508.04088).

    Step records: JSONL or parquet with the columns question, steps, images, and labels (critiques with a correction, or judge, or
    mc_scores); VisualPRM400K's own files are read as they are. The output folder is what vlrm search and vlrm.load_scorer take. Run
    again after an interruption, it goes on from its last checkpoint."""

    words: list[str] = key("the two verdict words, the positive one first", ["Correct", "Incorrect"])
    stop_at_first_error: bool = key("targets end after the first wrong step", False)
    instructions: str = key("text put after every prompt, in training and in use", "")
    consistency: Literal["exact", "first_error", "outcome"] = key("how critiques must agree with Monte-Carlo labels", "first_error")
    verdict_weight: float = key("weight of the loss at verdict words; 1 is the plain loss", 3.0)
    correction_weight: float = key("weight of the loss at the corrected step; 1 is the plain loss", 1.0)


@dataclass(kw_only=True)
class TrainVLPRM(Train):
    """Trains a VL-PRM: it answers every step with + or - (arXiv 2509.23250).

    Step records: JSONL or parquet with the columns question, steps, images, and labels (labels, judge, critiques or mc_scores);
    VisualPRM400K's own files are read as they are. The output folder is what vlrm search and vlrm.load_scorer take. Run again after an
    interruption, it goes on from its last checkpoint."""

    verdict_words: list[str] = key("the verdict words, the positive one first; if none are given + and -, for advantage + = -", [])
    system: str | None = key("system text; if none is given the paper's in our words, an empty one is left out", None)
    system_role: bool | None = key("a system turn, or the text in the first user's turn; if not said, as the chat template can", None)
    headers: bool = key("show the headers of sections whose kinds are known", True)
    target: Literal["hard", "soft", "value", "advantage"] = key("1 or 0, shares, Monte-Carlo above the threshold, change", "hard")
    label_source: Literal["auto", "labels", "judge", "critiques", "mc_scores"] = key("column that labels are taken from", "auto")
    threshold: float = key("a share is negative unless it is above this", 0.0)
    after_error: Literal["truncate", "negative", "keep"] = key("steps after the first negative one", "truncate")
    label_kinds: list[str] = key("sections that are trained on", ["perception", "reasoning"])
    loss: Literal["vocabulary", "choice"] | None = key("over all words or the verdict words; if not said, as the target wants", None)
    head: int = key("1 or 2 labels of a linear head on the token that ends a step, instead of words", 0)


@dataclass(kw_only=True)
class TrainBradleyTerry(Train):
    """Trains a scalar reward model on preferences: a linear head, read at the end of each answer, with the Bradley-Terry loss.

    Preferences: a .jsonl, .json or .parquet file, a folder that datasets saved, or a hub id, with the columns prompt, chosen, rejected
    and images (or image): text, or chat messages; optional margin. The output folder is what vlrm eval pairs, vlrm search and
    vlrm.load_scorer take, and what vLLM serves as a classifier. Run again after an interruption, it goes on from its last checkpoint."""

    split: str | None = key("split of a data set that has several", None)
    system: str = key("system text put before every chat that has none, in training and in use", "")
    margins: bool = key("use the column margin where it is given", True)
    centre: float = key("weight of the square of the two rewards' sum, which keeps rewards around 0; 0.01 is usual", 0.0)


@dataclass(kw_only=True)
class TrainRegression(Train):
    """Trains a scalar reward model on ratings: a linear head, read at the end of each answer, that gives the rating.

    Ratings: as for bradley_terry, with the columns prompt, response (or completion), score (or label, rating) and images. The output
    folder is what vlrm eval pairs, vlrm search and vlrm.load_scorer take. Run again after an interruption, it goes on from its last
    checkpoint."""

    split: str | None = key("split of a data set that has several", None)
    system: str = key("system text put before every chat that has none, in training and in use", "")
    loss: Literal["mse", "bce"] = key("squared error of standardised ratings, or cross-entropy of ratings in [0, 1]", "mse")


@dataclass(kw_only=True)
class TrainDPOJudge(Train):
    """Trains a generative judge by direct preference optimization, with TRL's DPOTrainer (arXiv 2305.18290).

    Preferences: as for bradley_terry. With `form` answers, chosen and rejected are two answers to the prompt, and the judge learns to say
    which is better, in either order; with judgements, the prompt is the judge's own and chosen and rejected are what it might say. The
    output folder is what vlrm eval pairs, vlrm search and vlrm.load_scorer take. Run again after an interruption, it goes on from its
    last checkpoint."""

    split: str | None = key("split of a data set that has several", None)
    form: Literal["answers", "judgements"] = key("what chosen and rejected are", "answers")
    orders: Literal["both", "random"] = key("answers: every pair in both orders, or in a random one", "both")
    instructions: str = key("answers: text at the end of the judge's prompt, in training and in use; if none is given, ours", "")
    beta: float = key("how closely the judge is held to the model it starts from", 0.1)
    sft_weight: float = key("weight of the chosen text's own likelihood beside the preference", 0.0)


@dataclass(kw_only=True)
class TrainPaCo(Train):
    """Trains a PaCo-Reward: whether two pictures are consistent, Yes or No before the reasons (arXiv 2512.04784).

    Pairs: JSONL or parquet with the columns images (two), label, and if need be question, task, reasons, group; chats of LLaMA-Factory's
    form are read as they are. The output folder is what vlrm eval ranks and vlrm.load_scorer take. Run again after an interruption, it goes
    on from its last checkpoint."""

    words: list[str] = key("the two verdict words, the positive one first", ["Yes", "No"])
    marks: list[str] = key("what stands before each picture", ["<img1>:", "<img2>:"])
    ending: str = key("text after every question", "Answer Yes or No first, then give your reasons.")
    system: str = key("text of a system turn; empty for none", "")
    alpha: float = key("share of the loss that the verdict has; 0 is the plain mean over tokens", 0.1)
    code_compat: bool = key("weights and normalisation of the released code instead of the paper's", False)
    reasons: bool = key("learn the reasons too; false is the fast variant, the verdict alone", True)


@dataclass(kw_only=True)
class TrainGRPO(Train):
    """Trains a policy with GRPO by TRL, on the scores of any reward models.

    Problems: JSONL or parquet with the columns id, question, images (or image) and answer (null where it is unknown), as vlrm search
    reads them. Rewards are a mapping in the YAML file, or JSON: {gm_prm: {scorer: runs/gm_prm, weight: 1.0, gate: format}, format: 0.1};
    policy/rewards/spec.py lists the keys. Shapers spread a completion's advantage over its tokens: {step_advantage: {reward: gm_prm}}. The
    output folder is what --policy of vlrm search takes; `vlrm report` draws the run. Run again after an interruption, it goes on from its
    last checkpoint."""

    data: str = key("problems: .jsonl, .json or .parquet")
    eval_data: str | None = key("problems that rewards and gold accuracy are measured on while training; the best policy is kept", None)
    scorer_settings: JSON = key("not used: a reward's scorer has its settings in rewards", None)
    rewards: JSON = key('rewards by name, such as {"answer": 1.0}')
    shapers: JSON = key('shapers by name with their settings, such as {"first_error": {}}: see policy/shapers', None)
    group_size: int = key("completions of each problem", 8)
    temperature: float = key("sampling temperature", 1.0)
    top_p: float = key("nucleus sampling", 1.0)
    top_k: int = key("top-k sampling; 0 is off", 0)
    max_tokens: int = key("longest completion, in tokens", 1024)
    instruction: str = key("text put after every question, such as how to write the steps and the answer", "")
    beta: float = key("weight of the KL term against the starting policy", 0.0)
    loss: str = key("loss_type of TRL", "dapo")
    scale_rewards: Literal["group", "batch", "none"] = key("what rewards are divided by the spread of", "group")
    iterations: int = key("optimizer passes over the same completions", 1)
    use_vllm: bool = key("sample with vLLM", False)
    vllm_mode: Literal["colocate", "server"] = key("vLLM in this process, or a server", "colocate")
    grpo: JSON = key('other settings of trl.GRPOConfig, such as {"vllm_gpu_memory_utilization": 0.4}', None)
    max_pixels: int | None = key("larger pictures are made smaller for the policy", None)
    together: str | None = key("column of the problems: those with equal values are kept in one batch", None)
    checker: str = key("checker of the gold accuracy, as in rm/checkers.py", "auto")
    eval_steps: int | None = key("steps between evaluations on eval_data; else save_steps", None)
    keep: Literal["best", "last"] = key("the policy that is kept: best on eval_data, or last", "best")
    blind_every: int = key("every so many steps some completions are scored without their pictures; 0 is never", 10)
    blind_samples: int = key("how many", 8)
    alarm_drop: float = key("alarm: gold accuracy this far below its best while the reward has risen", 0.02)
    alarm_rise: float = key("alarm: by more than this share of its range", 0.0)
    batch_size: int = key("completions on each device in each forward pass", 16)
    gradient_accumulation: int = key("batches in an optimizer step", 4)
    learning_rate: float | None = key("peak learning rate; if none is given 1e-6, with LoRA 1e-5", None)
    max_length: int | None = key("problems with more prompt tokens are dropped and counted", None)
    workers: int = key("processes that open pictures", 0)
    save_steps: int = key("steps between checkpoints; with eval_data one is kept at every evaluation instead", 100)
    logging_steps: int = key("steps between lines of the log", 1)
    limit: int | None = key("only the first problems of the file", None)


# method: (its settings, the library function that trains it)
METHODS: dict[str, tuple[type[Train], str]] = {
    "gm_prm": (TrainGMPRM, "vlrm.prm.train:train_gm_prm"),
    "vl_prm": (TrainVLPRM, "vlrm.prm.train_vl_prm:train_vl_prm"),
    "bradley_terry": (TrainBradleyTerry, "vlrm.rm.train_scalar:train_bradley_terry"),
    "dpo_judge": (TrainDPOJudge, "vlrm.rm.train_judge:train_dpo_judge"),
    "regression": (TrainRegression, "vlrm.rm.train_scalar:train_regression"),
    "paco": (TrainPaCo, "vlrm.rm.train_paco:train_paco"),
    "grpo": (TrainGRPO, "vlrm.policy.grpo_train:train_grpo"),
}
# what a method's training function calls its data, where that is not records
DATA = {"bradley_terry": "preferences", "regression": "ratings", "dpo_judge": "preferences"}


def train_settings(arguments: Sequence[str]) -> type[Train]:
    """The settings class of the method that the arguments name. Raises InputError for an unknown one, and for keys of another's."""
    said = given(arguments)
    method = str(said.get("method", Train.method))
    if method not in METHODS:
        raise InputError(f"unknown method {method!r}{nearest(method, METHODS)}")
    own = {item.name for item in fields(METHODS[method][0])}
    for name in said:
        others = [other for other, (settings, _) in METHODS.items() if name in {item.name for item in fields(settings)}]
        if name not in own and others:
            raise InputError(f"{name} belongs to --method {' and '.join(others)}, not {method}; leave it out")
    return METHODS[method][0]


def train_arguments(settings: Train) -> dict[str, Any]:
    """The settings as arguments of the method's training function."""
    if isinstance(settings, TrainGRPO):
        return grpo_arguments(settings)
    arguments = asdict(settings)
    if "verdict_words" in arguments:
        arguments["words"] = arguments.pop("verdict_words") or None
    if arguments.get("system", "") is None:
        del arguments["system"]
    if "alpha" in arguments:
        arguments["alpha"] = arguments["alpha"] or None
    what = DATA.get(settings.method, "records")
    arguments[what], arguments[f"eval_{what}"] = arguments.pop("data"), arguments.pop("eval_data")
    arguments["lora"] = arguments.pop("lora_settings") or arguments["lora"]
    del arguments["method"]
    return arguments


def grpo_arguments(settings: TrainGRPO) -> dict[str, Any]:
    """The settings as arguments of `train_grpo`; the problems are read here."""
    from ..rm.problems import read_problems

    if settings.scorer_settings:
        raise InputError("scorer_settings is not for --method grpo; write settings into the reward: {prm: {scorer: DIR, settings: {...}}}")
    arguments = asdict(settings)
    for name in ("method", "data", "eval_data", "image_root", "limit", "scorer_settings", "lora_settings"):
        del arguments[name]
    arguments["problems"] = read_problems(settings.data, image_root=settings.image_root, limit=settings.limit)
    arguments["eval_problems"] = read_problems(settings.eval_data, image_root=settings.image_root) if settings.eval_data else []
    arguments["lora"] = settings.lora_settings or settings.lora
    scorers = {name: reward.get("scorer") if isinstance(reward, dict) else reward for name, reward in settings.rewards.items()}
    arguments["identity"] = {"scorer_files": {name: folder_stamp(spec) for name, spec in scorers.items() if isinstance(spec, str)}}
    return arguments


def run_train(settings: Train) -> None:
    module, name = METHODS[settings.method][1].split(":")
    getattr(import_module(module), name)(**train_arguments(settings))
    say(f"trained {'policy' if settings.method == 'grpo' else 'scorer'} in {settings.output_dir}")
