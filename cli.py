"""The `vlrm` command: one verb each for what the library does. `vlrm --help` lists them.

Whatever a user can put right ends in one line on stderr and exit code 2; `VLRM_DEBUG=1` shows the traceback.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from . import __version__
from .commands import (
    convert,
    doctor,
    eval_pairs,
    eval_ranks,
    eval_steps,
    quickstart,
    report,
    search,
    serve,
    synth,
    synth_labels,
    synth_pairs,
    train,
)
from .config import help_text, nearest, parse
from .types import EngineError, InputError

# verb: its settings, what runs them; the settings' docstring is the help
VERBS: dict[str, tuple[type, Callable[[Any], None]]] = {
    "quickstart": (quickstart.Quickstart, quickstart.run_quickstart),
    "synth": (synth.Synth, synth.run_synth),
    "synth labels": (synth_labels.SynthLabels, synth_labels.run_synth_labels),
    "synth preferences": (synth.SynthPreferences, synth.run_synth_preferences),
    "synth merge": (synth_labels.SynthMerge, synth_labels.run_synth_merge),
    "synth pairs": (synth_pairs.SynthPairs, synth_pairs.run_synth_pairs),
    "train": (train.Train, train.run_train),
    "report": (report.Report, report.run_report),
    "search": (search.Search, search.run_search),
    "serve": (serve.Serve, serve.run_serve),
    "convert": (convert.Convert, convert.run_convert),
    "eval pairs": (eval_pairs.EvalPairs, eval_pairs.run_eval_pairs),
    "eval steps": (eval_steps.EvalSteps, eval_steps.run_eval_steps),
    "eval ranks": (eval_ranks.EvalRanks, eval_ranks.run_eval_ranks),
    "doctor": (doctor.Doctor, doctor.run_doctor),
}
# verb: the key that its first argument stands for, where that is no YAML file
FIRST: dict[str, str] = {"report": "run"}
# verb: what chooses its settings by the arguments
CHOOSE: dict[str, Callable[[Sequence[str]], type]] = {"train": train.train_settings}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code: 0 done, 2 something to put right, 130 interrupted."""
    try:
        return run(list(sys.argv[1:] if arguments is None else arguments))
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (InputError, EngineError, OSError) as error:
        if os.environ.get("VLRM_DEBUG"):
            raise
        print(f"vlrm: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if os.environ.get("VLRM_DEBUG"):
            raise
        print("vlrm: interrupted; the same command goes on where it stopped", file=sys.stderr)
        return 130


def run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if arguments[0] in ("--version", "-V"):
        print(f"vlrm {__version__}")
        return 0
    verb, rest = split_verb(arguments)
    settings, action = settings_for(verb, rest), VERBS[verb][1]
    if "-h" in rest or "--help" in rest:
        print(help_text(settings, f"vlrm {verb} [CONFIG.yaml] [--key value ...]", settings.__doc__))
        return 0
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # what matters to a user, we say ourselves
    if not sys.warnoptions:  # TRL's own use of a name that transformers will drop, told again at every step
        warnings.filterwarnings("ignore", message=".*gradient_checkpointing` is deprecated", category=FutureWarning)
    action(parse(settings, rest))
    return 0


def settings_for(verb: str, arguments: Sequence[str]) -> type:
    """The settings class of a verb; for some verbs the arguments choose it. Raises InputError where they name what does not exist."""
    said = [argument for argument in arguments if argument not in ("-h", "--help")]
    return CHOOSE[verb](said) if verb in CHOOSE and said else VERBS[verb][0]


def split_verb(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """The verb, of one word or two, and the arguments after it. Raises InputError for a verb that does not exist."""
    for words in (2, 1):
        if (verb := " ".join(arguments[:words])) in VERBS:
            rest = list(arguments[words:])
            if verb in FIRST and rest and not rest[0].startswith("-") and not rest[0].endswith((".yaml", ".yml")):
                rest.insert(0, f"--{FIRST[verb]}")
            return verb, rest
    if kinds := [name for name in VERBS if name.startswith(f"{verb} ")]:
        raise InputError(f"vlrm {verb} needs to know what: {', '.join(f'vlrm {name}' for name in kinds)}")
    raise InputError(f"unknown command {verb!r}{nearest(verb, VERBS)}")


def overview() -> str:
    verbs = [f"  {name:<18}{settings.__doc__.splitlines()[0]}" for name, (settings, _) in VERBS.items()]
    return "\n".join([
        f"vlrm {__version__}: vision-language reward models",
        "",
        "usage: vlrm VERB [CONFIG.yaml] [--key value ...]",
        "",
        *verbs,
        "",
        "`vlrm VERB --help` lists a verb's keys. A key on the command line wins over the YAML file.",
    ])  # fmt: skip
