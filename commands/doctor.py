"""`vlrm doctor`."""

from __future__ import annotations

from dataclasses import dataclass

from .common import key, say


@dataclass
class Doctor:
    """Tells what is installed, which engines work here, and what to install.

    Looks at package versions, the engines (vLLM is really imported), the processor, the GPUs and the disk."""

    json: bool = key("print one JSON object", False)
    url: str | None = key("also ask this server: http://host:port/v1", None)


def run_doctor(settings: Doctor) -> None:
    from ..doctor import examine, page

    findings = examine(settings.url)
    if settings.json:
        import json

        print(json.dumps(findings, indent=2))
    else:
        say(page(findings))
