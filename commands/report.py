"""`vlrm report`."""

from __future__ import annotations

from dataclasses import dataclass

from .common import key, say


@dataclass
class Report:
    """Draws a GRPO run as one page: rewards, gold accuracy, lengths, what went wrong, and alarms.

    Reads metrics.jsonl of the folder that vlrm train --method grpo writes, while it runs or afterwards. report.html is put beside it."""

    run: str = key("output folder of the run")
    output: str | None = key("the page; if not said report.html in the folder", None)


def run_report(settings: Report) -> None:
    from ..policy.grpo_report import write_report

    say(f"page in {write_report(settings.run, settings.output)}")
