"""wrong.html: the questions that were answered wrongly, beside frames that the model saw."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from pathlib import Path

from longvita.data.errors import SampleError
from longvita.data.media.video import read_frames
from longvita.errors import UserError
from longvita.evaluation.choice import LETTERS
from longvita.evaluation.task import Record
from longvita.pages import as_data_url, write_page

MOST_SHOWN = 200
"""Questions on the page; the others are counted there."""
FRAMES_SHOWN = 6
SIDE = 160
_STYLE = ".right { color: #17692b; } .wrong { color: #a11; } article { border-top: 1px solid #ddd; margin-top: 1rem; }"


def write_wrong_answers(path: Path, records: Sequence[Record], video_of: Callable[[str], Path]) -> None:
    """Writes the page; `video_of` tells the file of a record's "video"."""
    shown = records[:MOST_SHOWN]
    more = f", the first {len(shown)} of them here" if len(shown) < len(records) else ""
    parts = [f"<p>{len(records)} questions without the right answer{more}.</p>"]
    parts += [_article(record, video_of) for record in shown]
    write_page(path, "Wrong answers", parts, _STYLE)


def _article(record: Record, video_of: Callable[[str], Path]) -> str:
    title = f"{record['question_id']} · {record['video']} · {record['duration']} · {record['task_type']}"
    options = "".join(_option(*option, record) for option in zip(LETTERS, record["options"], strict=False))
    said = f"failed: {record['error']}" if "error" in record else f"said: {record['response'].strip() or '(nothing)'}"
    return (
        f"<article><p><small>{html.escape(title)}</small><br>{html.escape(record['question'])}</p>"
        f"<ul>{options}</ul><p class='wrong'>{html.escape(said)}</p>{_frames(record, video_of)}</article>"
    )


def _option(letter: str, text: str, record: Record) -> str:
    mark = "right" if letter == record["answer"] else "wrong" if letter == record.get("chosen") else ""
    return f"<li class='{mark}'>{html.escape(text)}</li>"


def _frames(record: Record, video_of: Callable[[str], Path]) -> str:
    """A few of the frames that the model saw, evenly chosen."""
    indices = record.get("frames", [])
    if not indices:
        return ""
    count = min(FRAMES_SHOWN, len(indices))
    chosen = sorted({indices[place * (len(indices) - 1) // max(count - 1, 1)] for place in range(count)})
    try:
        pictures = list(read_frames(video_of(record["video"]), chosen))
    except (SampleError, UserError) as error:
        return f"<p>{html.escape(str(error))}</p>"
    figures = (
        f"<figure><img src='{as_data_url(picture, SIDE)}' alt=''><figcaption>frame {index}</figcaption></figure>"
        for index, picture in zip(chosen, pictures, strict=True)
    )
    return "".join(figures)
