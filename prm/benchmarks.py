"""Benchmarks with step labels by people, as rows of a step-record file: `labels` are 1 right, 0 wrong, null where nothing is known.

    visualprocessbench  every step is labelled, all errors and not only the first (arXiv 2503.10291). 1 right, -1 wrong, 0 neutral; neutral
                        steps are removed from the metric, so they are null here unless `neutral` says otherwise
    vlrmbench           every step is labelled: `step_error` 1 marks a step into which an error was put, `step_correct` is 1 - step_error
                        (arXiv 2503.07478, tasks location_error: spatial relations, image_ref_error: pictures confused). No step is neutral.
                        Steps that follow from a wrong one are labelled right: an error is where it was put. Both tasks are about what
                        the pictures show, so the kind of an error is perception (inferred from the tasks). Most pictures are missing
    bigbench_mistake    text only; people marked the first wrong step (arXiv 2311.08516). Steps before it are right, it is wrong, the steps
                        after it are not labelled: null. All steps are right where `mistake_index` is null

None of them says what should stand in a wrong step's place. Kinds of errors stand in `meta`, not in `kinds`: those are sections, which
a critic may see.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..types import InputError

Row = Mapping[str, Any]
VLRMBENCH_KINDS = {"location_error": "perception", "image_ref_error": "perception"}


def visualprocessbench(row: Row, neutral: float | None = None) -> Row | str:
    response = row["response"]
    labels = response["process_correctness"]
    if unknown := [label for label in labels if label not in (-1, 0, 1)]:
        raise InputError(f"process_correctness must hold -1, 0 and 1, got {unknown[0]!r}")
    return {
        "id": row.get("id"),
        "source": f"VisualProcessBench/{row.get('data_source') or ''}".rstrip("/"),
        "images": _list(row.get("image")),
        "question": row["question"],
        "answer": _optional(row.get("answer")),
        "steps": response["steps"],
        "labels": [neutral if label == 0 else float(label == 1) for label in labels],
        "meta": {"policy_model": row.get("policy_model")},
    }


def vlrmbench(row: Row, neutral: float | None = None) -> Row | str:
    errors = row["step_error"]
    if unknown := [error for error in errors if error not in (0, 1)]:
        raise InputError(f"step_error must hold 0 and 1, got {unknown[0]!r}")
    task = row.get("category") or row.get("task") or ""
    return {
        "id": row.get("id"),
        "source": f"VLRMBench/{task}".rstrip("/"),
        "images": _list(row.get("image")),
        "question": row["question"],
        "answer": _optional(row.get("answer")),
        "steps": row["steps"],
        "labels": [float(error == 0) for error in errors],
        "meta": {"error_kinds": [VLRMBENCH_KINDS.get(task) if error else None for error in errors]},
    }


def bigbench_mistake(row: Row, neutral: float | None = None) -> Row | str:
    steps, mistake = row["steps"], row["mistake_index"]
    if mistake is not None and not 0 <= mistake < len(steps):
        raise InputError(f"mistake_index must be a step index from 0 to {len(steps) - 1} or null, got {mistake!r}")
    known = len(steps) if mistake is None else mistake
    return {
        "id": row.get("id"),
        "source": f"BIG-Bench-Mistake/{row.get('task') or ''}".rstrip("/"),
        "images": [],
        "question": row.get("question") or row["input"],
        "answer": _optional(row.get("target", row.get("answer"))),
        "steps": steps,
        "labels": [1.0 if i < known else 0.0 if i == mistake else None for i in range(len(steps))],
    }


def _list(image: Any) -> Sequence[Any]:
    return [] if image is None else list(image) if isinstance(image, (list, tuple)) else [image]


def _optional(answer: Any) -> str | None:
    return None if answer is None else str(answer)
