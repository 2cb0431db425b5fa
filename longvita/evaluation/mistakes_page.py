"""wrong.html: the questions that were answered wrongly, next to frames that the model saw."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from pathlib import Path

from longvita.data.errors import SampleError
from longvita.data.media.video import read_frames
from longvita.errors import UserError
from longvita.evaluation.option_text import LETTERS
from longvita.evaluation.task import AnswerRecord
from longvita.pages import as_data_url, write_page

MAX_QUESTIONS = 200
"""Questions on the page; it states the number of all."""
MAX_FRAMES = 6
FRAME_SIDE = 160
_STYLE = ".right { color: #17692b; } .wrong { color: #a11; } article { border-top: 1px solid #ddd; margin-top: 1rem; }"


def write_mistakes_page(path: Path, records: Sequence[AnswerRecord], video_of: Callable[[str], Path]) -> None:
    """Write the page; `video_of` maps a record's "video" to its file."""
    shown = records[:MAX_QUESTIONS]
    more = f", the first {len(shown)} of them here" if len(shown) < len(records) else ""
    parts = [f"<p>{len(records)} questions without the right answer{more}.</p>"]
    parts += [_article(record, video_of) for record in shown]
    write_page(path, "Wrong answers", parts, _STYLE)


def _article(record: AnswerRecord, video_of: Callable[[str], Path]) -> str:
    title = f"{record['question_id']} · {record['video']} · {record['duration']} · {record['task_type']}"
    options = "".join(_option(*option, record) for option in zip(LETTERS, record["options"], strict=False))
    result = f"failed: {record['error']}" if "error" in record else f"said: {record['response'].strip() or '(nothing)'}"
    return (
        f"<article><p><small>{html.escape(title)}</small><br>{html.escape(record['question'])}</p>"
        f"<ul>{options}</ul><p class='wrong'>{html.escape(result)}</p>{_frames(record, video_of)}</article>"
    )


def _option(letter: str, text: str, record: AnswerRecord) -> str:
    mark = "right" if letter == record["answer"] else "wrong" if letter == record.get("chosen") else ""
    return f"<li class='{mark}'>{html.escape(text)}</li>"


def _frames(record: AnswerRecord, video_of: Callable[[str], Path]) -> str:
    """Some of the frames that the model saw, evenly spaced."""
    indices = record.get("frames", [])
    if not indices:
        return ""
    count = min(MAX_FRAMES, len(indices))
    chosen = sorted({indices[place * (len(indices) - 1) // max(count - 1, 1)] for place in range(count)})
    try:
        pictures = list(read_frames(video_of(record["video"]), chosen))
    except (SampleError, UserError) as error:
        return f"<p>{html.escape(str(error))}</p>"
    return "".join(
        f"<figure><img src='{as_data_url(picture, FRAME_SIDE)}' alt=''><figcaption>frame {index}</figcaption></figure>"
        for index, picture in zip(chosen, pictures, strict=True)
    )
