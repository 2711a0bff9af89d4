"""What the reward server is asked and answers, as its OpenAPI page shows it."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..types import InputError

IMAGES = "base64 of an image file, or a data URL, in the order in which the question speaks of them"


class _Ask(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    question: str = Field(min_length=1, description="the question about the pictures")
    images: list[str] = Field(default=[], description=IMAGES)
    answer: str | None = Field(default=None, description="the gold answer, for scorers that compare with it")
    id: str | None = Field(default=None, min_length=1, max_length=200, description="the problem's own id")
    meta: dict[str, Any] = Field(default={}, description="handed to the scorer as it is")


Ask = TypeVar("Ask", bound=_Ask)


class ScoreAsk(_Ask):
    solutions: list[str] = Field(min_length=1, description="candidate solutions of the problem; each gets one score, in order")


class SearchAsk(_Ask):
    pass


class UsageOut(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    calls: int
    seconds: float


class VerdictOut(BaseModel):
    step: int = Field(description="0-based index of the step")
    correct: bool | None = Field(description="null where the critique could not be read")
    probability: float | None = Field(description="P(correct)")
    image: bool | None = Field(description="true to the pictures")
    logic: bool | None = Field(description="follows from what stands before")
    analysis: str


class ScoreOut(BaseModel):
    value: float | None = Field(description="null where there is no score; error says why")
    steps: list[float]
    verdicts: list[VerdictOut]
    first_error: int | None
    correction: str | None = Field(description="what should stand in place of the first wrong step")
    details: dict[str, Any]
    error: str | None
    usage: UsageOut
    digest: str = Field(description="BLAKE2b, 8 bytes, of the solution that was scored")
    batch: int | None = Field(description="number of the batch that it was scored in")


class ScoreReply(BaseModel):
    request_id: str
    scorer: str = Field(description="the scorer's fingerprint")
    scores: list[ScoreOut]


class CritiqueOut(BaseModel):
    value: float | None
    steps: list[VerdictOut]
    first_error: int | None
    correction: str | None
    text: str | None = Field(description="the critique as the model wrote it")
    error: str | None


class CritiqueReply(BaseModel):
    request_id: str
    scorer: str
    critiques: list[CritiqueOut]


class SearchReply(BaseModel):
    request_id: str
    result: dict[str, Any] = Field(description="one line of the file that vlrm search writes")


class ScorerOut(BaseModel):
    name: str
    fingerprint: str = Field(description="equal for replicas of the same scorer")
    version: str
    search: bool
    max_steps: int | None
    limits: dict[str, int]


class Status(BaseModel):
    status: str


class _Reason(BaseModel):
    message: str = Field(description="one line that says what to change, or when to ask again")


class Error(BaseModel):
    error: _Reason
    request_id: str


def parse_ask(kind: type[Ask], body: bytes) -> Ask:
    """The request in a JSON body. Raises InputError that names the first fault."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in fault["loc"]).lstrip(".")[:100]
        known = ", ".join(kind.model_fields)
        hint = f"; there are {known}" if fault["type"] == "extra_forbidden" else ""
        raise InputError(f"{where or 'the body'}: {fault['msg']}{hint}") from None
