"""Step records in the shapes that other trainers read. One row of their file for each record, or the reason why a record is left out.

    trl           {id, messages: [{role, content}], images}: conversational, for TRL's SFTTrainer. Contents are plain strings; TRL puts the
                  pictures before the first user turn. As .parquet the pictures are inside and `datasets` opens them
    llamafactory  {id, conversations: [{from: human|gpt, value}], system, images}: sharegpt, with one <image> for each picture in the first
                  human turn. `vlrm convert` also writes the entry of dataset_info.json
    ms_swift      {id, messages: [{role, content}], images}: ms-swift's own form, with <image> in the first user turn

Two styles of what is learnt:

    verdicts      one step a turn, answered + or - (VisualPRM, arXiv 2503.10291; VL-PRM, arXiv 2509.23250), the section's header before the
                  step that opens it. The chat ends after the first -,
                  unless `stop_at_first_error` is off. A step without a label is shown but not asked about: it stands in one turn with
                  the next labelled one, and labelless steps at the end are left out
    critique      GM-PRM's prompt and critique (arXiv 2508.04088), as `vlrm train` makes them

TRL 1.16 has no PRMTrainer and no stepwise type any more, so none is written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from ..types import InputError
from .critique import format_critique
from .gm_prm import critique_messages
from .records import StepRecord, fault, record_critique
from .sections import HEADERS
from .truth import step_truth
from .verdicts import SYSTEM

Style = Literal["verdicts", "critique"]
Messages = list[dict[str, str]]


def verdict_messages(record: StepRecord, threshold: float = 0.0, stop_at_first_error: bool = True, system: str = SYSTEM) -> Messages | str:
    """The chat of a record in the style `verdicts`: system, then user and assistant in turn. Labels are those of `step_truth`."""
    truth = step_truth(record, threshold)
    if truth is None or not any(label is not None for label in truth):
        return "no labels"
    messages = [{"role": "system", "content": system}] if system else []
    waiting = [f"### Question:\n{record.question}\n\n### Solution Process:"]
    section = None
    for text, kind, label in zip(record.steps, record.sections, truth, strict=True):
        if kind is not None and kind != section:
            waiting.append(HEADERS[kind])
        section = kind
        waiting.append(text)
        if label is None:
            continue
        messages += [{"role": "user", "content": "\n".join(waiting)}, {"role": "assistant", "content": "+" if label else "-"}]
        waiting = []
        if not label and stop_at_first_error:
            break
    return messages


def critique_chat(record: StepRecord, threshold: float = 0.0, stop_at_first_error: bool = False, system: str = "") -> Messages | str:
    """The chat of a record in the style `critique`: GM-PRM's prompt as one user turn, its critique as the answer."""
    if record.critiques is None:
        truth = step_truth(record, threshold)
        if truth is None:
            return "no labels"
        if None in truth:
            return "a step without a label"
        record = StepRecord(record.id, record.question, record.steps, judge=truth, first_error=None, correction=record.correction)
    if reason := fault(record):
        return reason
    prompt = critique_messages(record.question, record.steps, 0)[0]["content"][-1]["text"]
    target = format_critique(record_critique(record), stop_at_first_error=stop_at_first_error)
    opening = [{"role": "system", "content": system}] if system else []
    return [*opening, {"role": "user", "content": prompt}, {"role": "assistant", "content": target}]


STYLES: dict[str, Callable[..., Messages | str]] = {"verdicts": verdict_messages, "critique": critique_chat}


def trl(record: StepRecord, messages: Messages, images: Sequence[Any]) -> dict[str, Any]:
    return {"id": record.id, "messages": messages, "images": list(images)}


def ms_swift(record: StepRecord, messages: Messages, images: Sequence[Any]) -> dict[str, Any]:
    return {"id": record.id, "messages": _with_marks(messages, len(images)), "images": list(images)}


def llamafactory(record: StepRecord, messages: Messages, images: Sequence[Any]) -> dict[str, Any]:
    names = {"user": "human", "assistant": "gpt"}
    marked = _with_marks(messages, len(images))
    return {
        "id": record.id,
        "conversations": [{"from": names[m["role"]], "value": m["content"]} for m in marked if m["role"] in names],
        "system": next((m["content"] for m in marked if m["role"] == "system"), ""),
        "images": list(images),
    }


EXPORTS: dict[str, Callable[[StepRecord, Messages, Sequence[Any]], dict[str, Any]]] = {
    "trl": trl,
    "llamafactory": llamafactory,
    "ms_swift": ms_swift,
}


def dataset_info(file_name: str) -> dict[str, Any]:
    """The entry of LLaMA-Factory's dataset_info.json for a file that `llamafactory` rows were written to."""
    return {
        "file_name": file_name,
        "formatting": "sharegpt",
        "columns": {"messages": "conversations", "system": "system", "images": "images"},
        "tags": {"role_tag": "from", "content_tag": "value", "user_tag": "human", "assistant_tag": "gpt"},
    }


def check_style(to: str, style: str) -> None:
    for name, value, known in (("to", to, [*EXPORTS, "records"]), ("style", style, STYLES)):
        if value not in known:
            raise InputError(f"{name} must be one of {', '.join(known)}, got {value!r}")


def _with_marks(messages: Sequence[Mapping[str, str]], count: int) -> Messages:
    """One <image> for each picture before the first user turn; the mark must occur nowhere else."""
    plain = [{**message, "content": message["content"].replace("<image>", "image")} for message in messages]
    first = next(i for i, message in enumerate(plain) if message["role"] == "user")
    plain[first]["content"] = "<image>" * count + ("\n" if count else "") + plain[first]["content"]
    return plain
