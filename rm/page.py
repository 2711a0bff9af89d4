"""What the pages that vlrm writes are made of: one style, tables, pictures inside the page. Nothing on a page is fetched from anywhere."""

from __future__ import annotations

import base64
import html
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; color: #222; }
table { border-collapse: collapse; margin: 1em 0; } th, td { padding: .25em .8em; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child { text-align: left; } h2 { margin-top: 2em; }
.problem { border-top: 2px solid #bbb; padding: 1em 0; }
.problem > img { width: 144px; image-rendering: pixelated; float: left; margin: 0 1em 1em 0; }
.pool { display: grid; grid-template-columns: repeat(4, 1fr); gap: .6em; clear: both; }
.candidate { border: 1px solid #ddd; border-radius: 6px; padding: .5em; font-size: 12px; } .chosen { border: 2px solid #1a56c4; }
.step { padding: .1em .3em; margin: .15em 0; border-radius: 3px; white-space: pre-wrap; }
.good { background: #dff2df; } .bad { background: #f9d9d6; } .unread { background: #eee; } .fix { background: #dce8fb; }
.note { color: #666; } .right { color: #1c7c1c; } .wrong { color: #b3261e; }
"""


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    def line(cells: Sequence[Any], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"

    return "<table>" + line(head, "th") + "".join(line(row, "td") for row in rows) + "</table>"


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def picture(image: Any, longest: int = 480) -> str:
    """An `<img>` element with the picture inside, made smaller where its longer side is above `longest` pixels."""
    from ..serving.images import open_image

    opened = open_image(image)
    opened.thumbnail((longest, longest))
    buffer = io.BytesIO()
    opened.save(buffer, format="PNG")
    return f"<img alt='' src='data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}'>"


def pictures(images: Sequence[Any], longest: int = 480) -> str:
    """The pictures side by side, or why one of them cannot be shown."""
    from ..types import InputError

    try:
        return "".join(picture(image, longest) for image in images)
    except InputError as error:
        return f"<p class='wrong'>{html.escape(str(error))}</p>"


def write_page(path: Path, title: str, parts: Sequence[str], style: str = "") -> None:
    """The page of these parts, whole or not at all."""
    head = f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{html.escape(title)}</title><style>{STYLE}{style}</style>"
    part = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    part.write_text("\n".join([head, *parts, "</html>"]), encoding="utf-8")
    os.replace(part, path)
