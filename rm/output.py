"""The folder that training writes: checkpoints and metrics on the way, and at the end a model that is there whole or not at all.

output_dir/checkpoints/   what an interrupted run goes on from; removed at the end
output_dir/metrics.jsonl  a line for every log
output_dir/vlrm.json      written last: what `load_scorer` looks for
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import __version__
from ..types import InputError
from .rows import write_json

SCORERS = {
    "gm_prm": "vlrm.prm.gm_prm:GMPRM",
    "vl_prm": "vlrm.prm.vl_prm:VLPRM",
    "step_head": "vlrm.prm.step_head:StepHeadPRM",
    "scalar": "vlrm.rm.scalar:ScalarRM",
    "judge": "vlrm.rm.judge:Judge",
    "paco": "vlrm.rm.paco:PaCo",
}
CARD = "vlrm.json"
RUN = "run.json"


def finished(output_dir: Path, run: Mapping[str, Any], card: str = CARD) -> dict[str, Any] | None:
    """The summary of the same run if it is complete in this folder; InputError if another run is. `card` is the file written last."""
    try:
        summary = json.loads((output_dir / card).read_text(encoding="utf-8"))["training"]
        old = dict(summary["run"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    _check_same(old, run, output_dir)
    return summary


def prepare_folder(output_dir: Path, run: Mapping[str, Any], resume: bool, card: str = CARD) -> None:
    """Makes the folder ready for a run; without `resume` what an earlier run left is removed."""
    if output_dir.exists() and not output_dir.is_dir():
        raise InputError(f"{output_dir} is a file; give a folder to write to")
    if int(os.environ.get("RANK", "0")) > 0:
        return  # the first process of a distributed run does it
    work = output_dir / "checkpoints"
    if not resume:
        (output_dir / card).unlink(missing_ok=True)
        (output_dir / "metrics.jsonl").unlink(missing_ok=True)
        shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    if (work / RUN).is_file():
        try:
            _check_same(json.loads((work / RUN).read_text(encoding="utf-8")), run, output_dir)
        except ValueError as error:
            if isinstance(error, InputError):
                raise
    write_json(work / RUN, run)


def _check_same(old: Mapping[str, Any], new: Mapping[str, Any], output_dir: Path) -> None:
    new = json.loads(json.dumps(new))
    for name in new:
        if old.get(name) != new[name]:
            change = f"other {name}" if name == "data" else f"{name} {old.get(name)!r}, not {new[name]!r}"
            raise InputError(f"{output_dir} holds a run with {change}; choose another folder, or pass resume=False to replace it")


def save_scorer(
    trainer: Any,
    output_dir: Path,
    base: str,
    settings: Mapping[str, Any],
    summary: Mapping[str, Any],
    keep_checkpoints: bool,
    method: str = "gm_prm",
) -> None:
    """Writes model, processor, card and `vlrm.json`, the last of them when all else is there."""
    if method == "step_head" and hasattr(trainer.model, "merge_and_unload"):
        trainer.model = trainer.model.merge_and_unload()  # servers take no adapters for a head
    name = summary["run"]["model"]
    shown = str(Path(name).resolve()) if Path(name).is_dir() else name
    card = {"scorer": SCORERS[method], "base": shown, "settings": dict(settings), "training": dict(summary), "version": __version__}
    save_whole(trainer, output_dir, base, _model_card(base, settings, summary, method), card, CARD, keep_checkpoints)


def save_whole(
    trainer: Any, output_dir: Path, base: str, readme: str, card: Mapping[str, Any], name: str = CARD, keep_checkpoints: bool = False
) -> None:
    """Writes model, processor and README.md into a folder aside, then file by file to their places, and the card `name` last."""
    from transformers import AutoConfig

    aside = output_dir / ".saving"
    if trainer.is_world_process_zero():
        shutil.rmtree(aside, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    dtype = AutoConfig.from_pretrained(base).dtype
    if dtype is not None and not trainer.is_fsdp_enabled and not trainer.is_deepspeed_enabled:
        trainer.model.to(dtype)  # as the base model was stored
    if hasattr(trainer.model, "merge_and_unload") and hasattr(trainer.model.get_base_model(), "score"):
        trainer.model = trainer.model.merge_and_unload()  # servers take no adapters for a head
    trainer.save_model(str(aside))  # every process of a distributed run takes part
    if not trainer.is_world_process_zero():
        return
    (aside / "training_args.bin").unlink(missing_ok=True)
    (aside / "README.md").write_text(readme, encoding="utf-8")
    for path in sorted(aside.iterdir()):
        if (target := output_dir / path.name).is_dir():
            shutil.rmtree(target)
        os.replace(path, target)
    aside.rmdir()
    write_json(output_dir / name, card)
    if not keep_checkpoints:
        shutil.rmtree(output_dir / "checkpoints", ignore_errors=True)


_WHAT = {
    "gm_prm": (
        "A generative multimodal process reward model",
        "to write a critique of a solution step by step, with the first wrong step corrected\n(GM-PRM, arXiv 2508.04088)",
    ),
    "vl_prm": (
        "A vision-language process reward model",
        "to answer every step of a solution with its verdict word\n(VL-PRM, arXiv 2509.23250)",
    ),
    "step_head": (
        "A vision-language process reward model with a scalar head",
        "to give every step of a solution a number, by a head on the token that\nends it (the form of VL-PRM, arXiv 2509.23250)",
    ),
    "scalar": (
        "A vision-language reward model with a scalar head",
        "to give a whole answer a number, by a head on the chat's last token\n(a classifier for `vllm serve FOLDER --runner pooling`)",
    ),
    "judge": (
        "A vision-language judge",
        "to say which of two answers is better, by direct preference optimization\n(DPO, arXiv 2305.18290)",
    ),
    "paco": (
        "A pairwise consistency reward model",
        "to say whether two pictures are consistent, verdict first\n(PaCo-Reward, arXiv 2512.04784)",
    ),
}


def _model_card(base: str, settings: Mapping[str, Any], summary: Mapping[str, Any], method: str) -> str:
    title, what = _WHAT[method]
    kind = "reward-model" if method in ("scalar", "judge", "paco") else "process-reward-model"

    def table(values: Mapping[str, Any]) -> str:
        rows = [f"| {name} | {json.dumps(value, ensure_ascii=False)} |" for name, value in values.items()]
        return "\n".join(["| | |", "|---|---|", *rows])

    result = {name: summary[name] for name in ("steps", "seconds", "samples_per_second")} | summary["metrics"]
    return f"""---
library_name: vlrm
base_model: {base}
tags: [{kind}, {method.replace("_", "-")}]
---
# {title}

Fine-tuned from `{base}` by `vlrm train` {what}. Use it with

```python
import vlrm
scorer = vlrm.load_scorer("THIS FOLDER")
```

## Data
{table(summary["counts"])}

## Result
{table(result)}

## Scorer settings
{table(settings)}

## Recipe
{table(summary["run"])}
"""
