"""Foreign step data, one function a format: a row of the file becomes a row of a step-record file, or the reason why it is left out.

    records           vlrm's own columns, and VisualPRM400K (steps = [{step, score}]): read as they are (prm/records.py)
    vl_prm300k        question, image or image_path, uid, response, steps_with_score = [{step, score, num_mc_correct, num_mc_total}],
                      parsing_failed (arXiv 2509.23250); also with every name after `rollout_`. Sections come from the response's
                      [Visual Elements] (or [Perception]) and [Reasoning]
    verdict_chat      `messages` or `conversations`: question and first step, then "+" or "-", then the next step, and so on: the training
                      form of VisualPRM and VL-PRM, and what `vlrm convert` writes with style verdicts
    prm800k           question = {problem, ground_truth_answer, pre_generated_steps}, label = {steps, finish_reason} (arXiv 2305.20050)
    math_shepherd     input with the tag `ки` after every step, label with + or - in its place (arXiv 2312.08935)
    trl_stepwise      prompt, completions, labels: the stepwise type of TRL's former PRMTrainer
    ursa              image_url, instruction, output: DualMath-1.1M (tag ` и`, + or - in the output) and MMathCoT-1M (no labels)
    visualprocessbench, vlrmbench, bigbench_mistake: benchmarks with labels by people, in prm/benchmarks.py

`ratings` of people are -1, 0, 1. What becomes of 0 (neither wrong nor helpful) is the setting `neutral`: "null" leaves the step unlabelled,
"right" counts it as right (as Lightman et al. do when they score a solution), "wrong" as wrong.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..types import InputError
from .benchmarks import bigbench_mistake, visualprocessbench, vlrmbench
from .steps import MARKER

Row = Mapping[str, Any]
NEUTRAL = {"null": None, "right": 1.0, "wrong": 0.0}
_BLOCK = re.compile(r"<step_\d+>\s*(.*?)\s*</step_\d+>", re.DOTALL)
_SECTION = re.compile(r"^\s*\[(Visual Elements|Perception|Reasoning)\]\s*", re.IGNORECASE | re.MULTILINE)
_QUESTION = re.compile(r"#+\s*Question:\s*(.*?)\s*#+\s*Solution Process:\s*", re.DOTALL | re.IGNORECASE)
_ANSWER = re.compile(r"(?:†\s*Answer|The answer is)\s*:\s*(.+?)\s*$", re.DOTALL | re.IGNORECASE)


def records(row: Row, neutral: float | None = None) -> Row | str:
    return row


def vl_prm300k(row: Row, neutral: float | None = None) -> Row | str:
    row = {name.removeprefix("rollout_"): value for name, value in row.items()}
    if row.get("parsing_failed"):
        return "parsing had failed"
    steps = row.get("steps_with_score") or []
    question = str(row.get("question") or row.get("prompt") or "")
    asked = re.search(r"<question>\s*(.*?)\s*</question>", question, re.DOTALL)
    counted = [(step.get("num_mc_correct"), step.get("num_mc_total")) for step in steps]
    verified = {name: value for name, value in row.items() if name.endswith("_isVerified")}
    return {
        "id": row.get("id") or row.get("uid") or row.get("uuid"),
        "source": "VL-PRM300K",
        "images": _one(row.get("image") or row.get("image_path")),
        "question": asked.group(1) if asked else question,
        "answer": row.get("answer"),
        "steps": [step["step"] for step in steps],
        "mc_scores": [step["score"] for step in steps],
        "mc_counts": [list(counts) if None not in counts else None for counts in counted],
        "kinds": section_kinds([step["step"] for step in steps], row.get("response") or ""),
        "meta": verified,
    }


def verdict_chat(row: Row, neutral: float | None = None) -> Row | str:
    turns = [
        (turn.get("role") or turn.get("from"), _text(turn.get("content") or turn.get("value") or ""))
        for turn in row.get("messages") or row.get("conversations") or []
    ]
    turns = [(role, text) for role, text in turns if role != "system"]
    texts, verdicts = [text for _, text in turns[::2]], [text.strip() for _, text in turns[1::2]]
    if not turns or len(texts) != len(verdicts) or not set(verdicts) <= {"+", "-"}:
        return "not a chat of steps and + or -"
    opened = _QUESTION.search(texts[0])
    if opened is None:
        return "the first turn has no question and solution process"
    texts[0] = texts[0][opened.end() :]
    steps, kinds, kind = [], [], None
    for text in texts:
        for section in _SECTION.finditer(text):
            kind = "reasoning" if section.group(1).casefold() == "reasoning" else "perception"
        text = _SECTION.sub("", text).strip()
        steps.append(_BLOCK.sub(r"\1", text))
        kinds.append(kind)
    return {
        "id": row.get("id"),
        "source": row.get("source"),
        "images": row.get("images") or _one(row.get("image") or row.get("image_url")),
        "question": opened.group(1),
        "steps": steps,
        "labels": [float(verdict == "+") for verdict in verdicts],
        "kinds": kinds if any(kinds) else None,
    }


def prm800k(row: Row, neutral: float | None = None) -> Row | str:
    question, label = row["question"], row["label"]
    if label.get("finish_reason") == "bad_problem":
        return "the labeller found the problem bad"
    written = question.get("pre_generated_steps") or []
    path = [_chosen(step, written[i] if i < len(written) else None) for i, step in enumerate(label.get("steps") or [])]
    path = path[: path.index(None)] if None in path else path  # what was taken at this place is not known
    if not path:
        return "no rated step"
    return {
        "id": row.get("id"),
        "source": "PRM800K",
        "images": [],
        "question": question["problem"],
        "answer": question.get("ground_truth_answer"),
        "steps": [text for text, _ in path],
        "labels": [rating_label(rating, neutral) for _, rating in path],
        "meta": {"finish_reason": label.get("finish_reason"), "quality_control": bool(row.get("is_quality_control_question"))},
    }


def _chosen(step: Row, written: str | None) -> tuple[str, int | None] | None:
    """Text and rating of the completion that the solution goes on with; at a dead end the one that the model had written."""
    completions = step.get("completions") or []
    if step.get("chosen_completion") is not None:
        chosen = completions[step["chosen_completion"]]
    elif step.get("human_completion"):
        chosen = {
            "rating": 1,
            **{k: v for k, v in step["human_completion"].items() if v is not None},
        }  # written because all others were wrong
    else:
        bad = [completion for completion in completions if completion.get("rating") == -1]
        chosen = next((completion for completion in completions if completion["text"] == written), bad[0] if bad else None)
    return None if chosen is None else (chosen["text"], chosen.get("rating"))


def math_shepherd(row: Row, neutral: float | None = None) -> Row | str:
    found = tagged(row["input"], row["label"], "ки")
    if found is None:
        return "label does not follow input"
    pieces, labels = found
    question, first = split_question(pieces[0])
    answer = _ANSWER.search(pieces[-1])
    return {
        "id": row.get("id"),
        "source": f"Math-Shepherd/{row['task']}" if row.get("task") else "Math-Shepherd",
        "images": [],
        "question": question,
        "steps": [first, *pieces[1:]],
        "labels": labels,
        "meta": {"solution_answer": answer.group(1)} if answer else {},  # the file has no gold answer
    }


def trl_stepwise(row: Row, neutral: float | None = None) -> Row | str:
    return {
        "id": row.get("id"),
        "images": row.get("images") or _one(row.get("image")),
        "question": _text(row["prompt"][-1]["content"]) if isinstance(row["prompt"], list) else row["prompt"],
        "steps": list(row["completions"]),
        "labels": [None if label is None else float(label) for label in row["labels"]],
    }


def ursa(row: Row, neutral: float | None = None) -> Row | str:
    """The place of DualMath's + and - is inferred from URSA's inference code; no card describes it."""
    instruction, output = _text(row["instruction"]), _text(row["output"])
    common = {"id": row.get("id"), "images": _one(row.get("image_url"))}
    asked = re.sub(r"\A.*?Question:\s*", "", instruction, count=1, flags=re.DOTALL) if "Question:" in instruction else instruction
    if " и" in instruction:
        found = tagged(asked, re.sub(r"\A.*?Question:\s*", "", output, count=1, flags=re.DOTALL), "и")
        if found is None:
            return "output does not follow instruction"
        pieces, labels = found
        question, first = split_question(pieces[0])
        answer = _ANSWER.search(asked)
        steps = [first, *pieces[1:]]
        return {**common, "source": "DualMath-1.1M", "question": question, "answer": None, "steps": steps, "labels": labels,
                "meta": {"solution_answer": answer.group(1)} if answer else {}}  # fmt: skip
    answer = _ANSWER.search(output)
    starts = [match.start() for match in MARKER.finditer(output)]
    if not starts:
        return "no steps"
    body = output[: answer.start()] if answer else output
    steps = [body[at:end].strip() for at, end in zip(starts, [*starts[1:], len(body)], strict=True)]
    return {**common, "source": "MMathCoT-1M", "question": asked, "answer": answer.group(1) if answer else None, "steps": steps}


FORMATS: dict[str, Callable[[Row, float | None], Row | str]] = {
    "records": records,
    "vl_prm300k": vl_prm300k,
    "verdict_chat": verdict_chat,
    "prm800k": prm800k,
    "math_shepherd": math_shepherd,
    "trl_stepwise": trl_stepwise,
    "ursa": ursa,
    "visualprocessbench": visualprocessbench,
    "vlrmbench": vlrmbench,
    "bigbench_mistake": bigbench_mistake,
}


def detect(row: Row) -> str:
    """The format of a row by its columns. Raises InputError where they fit none."""
    has = {name for name, value in row.items() if value is not None}
    response = row.get("response")
    if isinstance(row.get("question"), Mapping) and isinstance(row.get("label"), Mapping):
        return "prm800k"
    if isinstance(response, Mapping) and "process_correctness" in response:
        return "visualprocessbench"
    if {"step_error", "steps"} <= has:
        return "vlrmbench"
    if "mistake_index" in row and "steps" in has:
        return "bigbench_mistake"
    if {"prompt", "completions", "labels"} <= has:
        return "trl_stepwise"
    if {"image_url", "instruction", "output"} <= has:
        return "ursa"
    if {"input", "label"} <= has and "ки" in str(row["input"]):
        return "math_shepherd"
    if has & {"messages", "conversations"}:
        return "verdict_chat"
    if "rollout_steps_with_score" in has or ("steps_with_score" in has and "response" in has):
        return "vl_prm300k"
    if has & {"steps", "steps_with_score"} and has & {"question", "prompt", "problem"}:
        return "records"
    raise InputError(f"the columns {', '.join(row)} fit no known format; say which it is with format, one of {', '.join(FORMATS)}")


def rating_label(rating: Any, neutral: float | None) -> float | None:
    """A person's -1, 0 or 1 as a label; None where there is no rating."""
    if rating not in (-1, 0, 1, None):
        raise InputError(f"a step's rating must be -1, 0, 1 or null, got {rating!r}")
    return None if rating is None else neutral if rating == 0 else float(rating == 1)


def tagged(text: str, judged: str, tag: str) -> tuple[list[str], list[float]] | None:
    """The pieces of `text` that end with `tag`, and the label that `judged` has at each tag: the same text with + or - there. None where
    the two texts differ elsewhere."""
    *pieces, _ = text.split(tag)
    at, labels = 0, []
    for piece in pieces:
        end = at + len(piece)
        if judged[at:end] != piece or judged[end : end + 1] not in ("+", "-"):
            return None
        labels.append(float(judged[end] == "+"))
        at = end + 1
    return ([piece.strip() for piece in pieces], labels) if pieces else None


def split_question(text: str) -> tuple[str, str]:
    """A text before its first step marker, and from there on; without a marker its last line is the step."""
    match = MARKER.search(text) or re.search(r"(?<=\s)Step \d+\s*:", text)
    at = match.start() if match else text.rstrip().rfind("\n") + 1
    return text[:at].strip(), text[at:].strip()


def section_kinds(steps: Sequence[str], response: str) -> list[str | None]:
    """The section of each step, found by going through the response in order (two steps may have the same text)."""
    marks = [(m.start(), "reasoning" if m.group(1).casefold() == "reasoning" else "perception") for m in _SECTION.finditer(response)]
    blocks = [(m.start(), m.group(1)) for m in _BLOCK.finditer(response)]
    kinds: list[str | None] = []
    at = 0
    for step in steps:
        wanted = _BLOCK.sub(r"\1", _SECTION.sub("", step)).strip()
        place = next((i for i in range(at, len(blocks)) if blocks[i][1] == wanted), None)
        at = at if place is None else place + 1
        kinds.append(None if place is None else next((kind for start, kind in reversed(marks) if start < blocks[place][0]), None))
    return kinds


def _one(image: Any) -> list[Any]:
    return [] if image is None or image == "" else list(image) if isinstance(image, (list, tuple)) else [image]


def _text(content: Any) -> str:
    """A chat turn's text, its image parts left out."""
    if isinstance(content, str):
        return content.replace("<image>", "").strip("\n")
    return "\n".join(part["text"] for part in content if part.get("type") == "text")
