"""Video-MME (arXiv 2405.21075): multiple-choice questions on videos of eleven seconds to an hour, as downloaded.

The folder holds `videomme/*.parquet` with the questions, the videos and subtitles by the column videoID, unpacked or in
the .zip files that they come in. The prompts are the benchmark's own. Subtitles are those on screen at the frames that
the model sees. The headline score is right answers over all questions; a question whose video cannot be used counts as
wrong, and is counted beside.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longvita.data.errors import SampleError
from longvita.data.media.video import chosen_frames, probe_video
from longvita.evaluation.choice import LETTERS, chosen_option
from longvita.evaluation.media_files import VIDEO_SUFFIXES, DataSetError, MediaFiles
from longvita.evaluation.subtitles import read_srt, texts_at
from longvita.evaluation.tables import read_rows
from longvita.evaluation.task import Asked, Item, Record
from longvita.evaluation.wrong_answers import write_wrong_answers
from longvita.inference.encoding import PromptError
from longvita.inference.sampling import Sampling

if TYPE_CHECKING:
    from longvita.inference.engine import Engine

COLUMNS = ("videoID", "question_id", "duration", "domain", "sub_category", "task_type", "question", "options", "answer")
BREAKDOWNS = ("duration", "domain", "task_type", "sub_category")
"""Columns by which scores are told apart."""
MAX_NEW_TOKENS = 16
_COST = {"short": 1.0, "medium": 6.0, "long": 30.0}
"""About the minutes of a video."""


@dataclasses.dataclass(frozen=True)
class Question:
    """One row of the data set."""

    question_id: str
    video: str
    """videoID, the name of its files."""
    duration: str
    domain: str
    sub_category: str
    task_type: str
    question: str
    options: tuple[str, ...]
    answer: str
    """Letter of the right option."""


class VideoMME:
    """Args:
    folder: the data set.
    subtitles: whether the questions come with subtitles, where a video has some.
    limit: ask this many questions alone, the first ones; all when None.

    Raises DataSetError for a folder that is none, or lacks what it should hold.
    """

    name = "video_mme"

    def __init__(self, folder: Path, subtitles: bool = False, limit: int | None = None):
        self.folder, self.subtitles = folder, subtitles
        self.questions = {question.question_id: question for question in read_questions(folder)[:limit]}
        self._videos = MediaFiles(folder, VIDEO_SUFFIXES)
        self._subtitles = MediaFiles(folder, (".srt",))
        names = {question.video for question in self.questions.values()}
        if not any(name in self._videos for name in names):
            raise DataSetError(f"{folder} holds none of the {len(names)} videos, such as {min(names)}.mp4")
        if subtitles and not any(name in self._subtitles for name in names):
            raise DataSetError(f"{folder} holds no subtitles (.srt) of these videos; ask without --subtitles")

    def identity(self) -> Mapping[str, Any]:
        """See Task."""
        return {"data": str(self.folder.resolve()), "subtitles": self.subtitles}

    def items(self) -> Sequence[Item]:
        """See Task."""
        return [Item(q.question_id, q.video, _COST.get(q.duration, 1.0)) for q in self.questions.values()]

    def prepare(self, item: Item) -> None:
        """See Task."""
        video = self.questions[item.key].video
        self._videos.path(video, "video")
        if self.subtitles and video in self._subtitles:
            self._subtitles.path(video, "subtitle")

    def encode(self, engine: Engine, item: Item) -> Asked:
        """See Task."""
        question = self.questions[item.key]
        path = self._videos.path(question.video, "video")
        frames, lines = self._shown(question, path, engine)
        messages = [{"role": "user", "content": "<video>\n" + prompt_text(question, lines)}]
        prompt = engine.encode(messages, videos=[path])
        facts = {"frames": frames, "subtitles": len(lines), "prompt_tokens": len(prompt)}
        return Asked(prompt, dataclasses.asdict(question) | facts)

    def ask(self, engine: Engine, item: Item, asked: Asked) -> Record:
        """See Task."""
        question, start = self.questions[item.key], time.monotonic()
        answer = "".join(engine.answer(asked.prompt, Sampling(max_new_tokens=MAX_NEW_TOKENS)))
        chosen = chosen_option(answer, question.options)
        return {
            **asked.facts,
            "response": answer,
            "chosen": chosen,
            "right": chosen == question.answer,
            "seconds": round(time.monotonic() - start, 3),
        }

    def _shown(self, question: Question, path: Path, engine: Engine) -> tuple[list[int], list[str]]:
        """Indices of the frames that the model sees of a video, and the subtitles at them."""
        config = engine.config
        try:
            facts = probe_video(path)
        except SampleError as error:
            raise PromptError(str(error)) from error
        frames = chosen_frames(facts, config.data.max_fps, config.inference.max_num_frames)
        if not self.subtitles or question.video not in self._subtitles:
            return frames, []
        subtitles = read_srt(self._subtitles.path(question.video, "subtitle"))
        return frames, texts_at(subtitles, [frame / facts.fps for frame in frames])

    def report(self, records: Mapping[str, Record], folder: Path) -> dict[str, Any]:
        """See Task."""
        asked = [{**dataclasses.asdict(q), **records[key]} for key, q in self.questions.items()]
        wrong = [record for record in asked if not record.get("right")]
        write_wrong_answers(folder / "wrong.html", wrong, lambda name: self._videos.path(name, "video"))
        return score(asked)


def read_questions(folder: Path) -> list[Question]:
    """The questions of a data set, in its order. Raises DataSetError."""
    if not folder.is_dir():
        raise DataSetError(f"the data set {folder} is no folder; give the folder of Video-MME with --data")
    paths = sorted(folder.rglob("*.parquet"))
    if not paths:
        raise DataSetError(f"{folder} holds no .parquet file; Video-MME has videomme/test-00000-of-00001.parquet")
    questions = []
    for row in read_rows(paths, COLUMNS):
        values = {column: str(row[column]) for column in COLUMNS if column != "options"}
        options = tuple(map(str, row["options"] or ()))
        if len(options) < 2 or values["answer"] not in LETTERS[: len(options)]:
            raise DataSetError(
                f"question {values['question_id']} of {folder} has the options {list(options)} and the answer "
                f"{values['answer']!r}, which is not the letter of one of them"
            )
        questions.append(Question(video=values.pop("videoID"), options=options, **values))
    repeated = len(questions) - len({question.question_id for question in questions})
    if repeated:
        raise DataSetError(f"{repeated} questions of {folder} have the same question_id as another")
    return questions


def prompt_text(question: Question, subtitles: Sequence[str]) -> str:
    """The benchmark's prompt; subtitles stand before the question, so that all questions on a video begin alike."""
    *first, last = tuple(LETTERS[: len(question.options)])
    shown = "This video's subtitles are listed below:\n" + "\n".join(subtitles) + "\n" if subtitles else ""
    sources = "the video and the subtitles" if subtitles else "the video"
    options = "\n".join(question.options)
    return (
        f"{shown}Select the best answer to the following multiple-choice question based on {sources}. Respond with "
        f"only the letter ({', '.join(first)}, or {last}) of the correct option.\n"
        f"{question.question}\n{options}\nThe best answer is:"
    )


def score(records: Sequence[Record]) -> dict[str, Any]:
    """Right and asked questions and their ratio, over all and by each of BREAKDOWNS; `failed` and `unclear` beside."""

    def part(chosen: Sequence[Record]) -> dict[str, Any]:
        right = sum(bool(record.get("right")) for record in chosen)
        return {"right": right, "asked": len(chosen), "accuracy": right / max(len(chosen), 1)}

    scores: dict[str, Any] = {"overall": part(records)}
    for column in BREAKDOWNS:
        values = dict.fromkeys(record[column] for record in records)
        scores[column] = {value: part([r for r in records if r[column] == value]) for value in values}
    scores["failed"] = sum("error" in record for record in records)
    scores["unclear"] = sum("error" not in record and record["chosen"] is None for record in records)
    return scores
