"""A chat as Markdown, as one HTML page with its pictures inside, or as JSON.

What people and models wrote is data: in HTML all of it is escaped, and the page may load nothing.
"""

from __future__ import annotations

import base64
import html
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Literal

from safesteer_edge.chats.chat_log import ChatEntry, ChatLog
from safesteer_edge.chats.records import StoredMedia
from safesteer_edge.formats.display_text import strip_control_characters
from safesteer_edge.formats.json_values import to_json
from safesteer_edge.templates.reasoning import thought_label

ExportFormat = Literal["markdown", "html", "json"]
EXPORT_SUFFIXES: Final[Mapping[ExportFormat, str]] = {
    "markdown": ".md",
    "html": ".html",
    "json": ".json",
}
MediaPath = Callable[[StoredMedia], Path]

# First bytes of what browsers show; anything else is named and not shown.
_IMAGE_TYPES: Final = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
    (b"BM", "image/bmp"),
)
_ENDS: Final[Mapping[str, str]] = {
    "length": "cut off at the token limit",
    "loop": "stopped: it repeated itself",
    "refused": "refused",
    "cancelled": "stopped",
    "died": "cut off: the engine died",
}
_STYLE: Final = (
    "body{font:16px/1.55 system-ui,sans-serif;max-width:46rem;margin:2rem auto;padding:0 1rem;"
    "color:#1c1c1e;background:#fff}h1{font-size:1.4rem}h2{font-size:1rem;margin:1.6rem 0 .3rem}"
    ".text{white-space:pre-wrap;overflow-wrap:anywhere}.note,details{color:#666;font-size:.85rem}"
    "img{max-width:100%;border-radius:4px}.user{border-left:3px solid #888;padding-left:.8rem}"
    "@media(prefers-color-scheme:dark){body{color:#eee;background:#161618}.note,details{color:#aaa}}"
)


def export_chat(log: ChatLog, to: ExportFormat, *, media_path: MediaPath) -> str:
    """The branch that is shown, as text of this format. media_path: where a medium lies."""
    if to == "markdown":
        return _to_markdown(log)
    if to == "html":
        return _to_html(log, media_path)
    return json.dumps(_to_json(log), ensure_ascii=False, indent=2) + "\n"


def _to_markdown(log: ChatLog) -> str:
    blocks = [f"# {_clean(log.title)}", f"*{_clean(_subtitle(log))}*"]
    for entry in log.branch():
        blocks.append(f"## {_speaker(log, entry)}")
        blocks += [f"*({item.kind}: {_clean(item.name)})*" for item in entry.media]
        if entry.reasoning:
            blocks.append(_quoted(f"*{thought_label(entry.reasoning)}*", _clean(entry.reasoning)))
        blocks.append(_clean(entry.text))
        note = _note(entry)
        if note:
            blocks.append(f"*{_clean(note)}*")
    return "\n\n".join(block for block in blocks if block) + "\n"


def _to_html(log: ChatLog, media_path: MediaPath) -> str:
    title = html.escape(_clean(log.title))
    parts = [
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "img-src data:; style-src 'unsafe-inline'\">",
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{title}</title><style>{_STYLE}</style></head><body>",
        f'<h1>{title}</h1><p class="note">{html.escape(_clean(_subtitle(log)))}</p>',
    ]
    for entry in log.branch():
        parts.append(f'<section class="{entry.role}"><h2>{html.escape(_speaker(log, entry))}</h2>')
        parts += [_medium_to_html(item, media_path) for item in entry.media]
        if entry.reasoning:
            thought = html.escape(_clean(entry.reasoning))
            parts.append(
                f"<details><summary>{thought_label(entry.reasoning)}</summary>"
                f'<div class="text">{thought}</div></details>'
            )
        parts.append(f'<div class="text">{html.escape(_clean(entry.text))}</div>')
        note = _note(entry)
        if note:
            parts.append(f'<p class="note">{html.escape(_clean(note))}</p>')
        parts.append("</section>")
    return "\n".join([*parts, "</body></html>"]) + "\n"


def _medium_to_html(item: StoredMedia, media_path: MediaPath) -> str:
    name = html.escape(_clean(item.name))
    try:
        data = media_path(item).read_bytes() if item.kind == "image" else b""
    except OSError:
        return f'<p class="note">({item.kind}: {name}, which is gone)</p>'
    kind = _image_type(data)
    if kind is None:
        return f'<p class="note">({item.kind}: {name})</p>'
    encoded = base64.b64encode(data).decode("ascii")
    return f'<p><img alt="{name}" src="data:{kind};base64,{encoded}"></p>'


def _image_type(data: bytes) -> str | None:
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return next((kind for start, kind in _IMAGE_TYPES if data.startswith(start)), None)


def _to_json(log: ChatLog) -> dict[str, Any]:
    return {
        "id": log.header.id,
        "title": log.title,
        "created": _iso(log.header.at),
        "updated": _iso(log.updated_at),
        "model": to_json(log.model),
        "messages": [
            {
                "role": entry.role,
                "at": _iso(entry.at),
                "text": entry.text,
                **({"reasoning": entry.reasoning} if entry.reasoning else {}),
                "media": [to_json(item) for item in entry.media],
                "end": to_json(entry.end),
            }
            for entry in log.branch()
        ],
    }


def _quoted(*paragraphs: str) -> str:
    """Markdown's quote: whatever the lines hold, they stay in it."""
    lines = "\n\n".join(paragraphs).splitlines()
    return "\n".join(f"> {line}".rstrip() for line in lines)


def _subtitle(log: ChatLog) -> str:
    parts = [time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(log.header.at))]
    if log.model is not None:
        guard = f"guard {log.model.bundle}" if log.model.bundle else "no guard"
        parts.append(f"{log.model.name} {log.model.quantization}, {guard}")
    return "; ".join(parts)


def _speaker(log: ChatLog, entry: ChatEntry) -> str:
    if entry.role == "assistant":
        return _clean(log.model.name) if log.model is not None else "Model"
    return "You" if entry.role == "user" else "System prompt"


def _note(entry: ChatEntry) -> str:
    """How an answer ended, and what the guard did, where there is something to say."""
    if entry.role != "assistant":
        return ""
    if entry.end is None:
        return "cut off"
    notes = [_ENDS[entry.end.reason]] if entry.end.reason in _ENDS else []
    if entry.end.refusal is not None:
        notes[-1:] = [f"refused by the guard: {entry.end.refusal.detail}"]
    guard = entry.end.guard
    if guard is not None and guard.mode in ("off", "monitor"):
        notes.append("the guard was off" if guard.mode == "off" else "the guard only watched")
    elif guard is not None and guard.opening and entry.end.refusal is None:
        notes.append("the guard led this answer to a refusal in the model's own words")
    elif guard is not None and guard.interventions:
        notes.append(f"{guard.interventions} tokens steered")
    return "; ".join(notes)


def _iso(at: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))


def _clean(text: str) -> str:
    return strip_control_characters(text)
