"""Video-MME (arXiv 2405.21075): multiple-choice questions about videos of eleven seconds to an hour, as downloaded.

The folder holds `videomme/*.parquet` with the questions, and the videos and subtitles, named by the column videoID,
unpacked or in the .zip files of the download. The prompts are the benchmark's own. A video is shown with as many frames
as fit next to its longest question, at most inference.max_num_frames; subtitles are those on screen at these frames.
The headline score is right answers over all questions. A question whose video cannot be used counts as wrong, and under
"failed" as well.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from longvita.config.schema import Config
from longvita.data.errors import SampleError
from longvita.data.media.video import frame_times, probe_video, selected_frames
from longvita.data.sample import Turn
from longvita.errors import shorten
from longvita.evaluation.choice import chosen_option
from longvita.evaluation.data_set_files import VIDEO_SUFFIXES, DataSetError, MediaFiles, files_below, read_rows
from longvita.evaluation.mistakes_page import write_mistakes_page
from longvita.evaluation.option_text import LETTERS, with_letters
from longvita.evaluation.subtitles import read_srt, texts_at
from longvita.evaluation.task import AnswerRecord, EvaluationItem, EvaluationTask, ItemPrompt, accuracy, digest_of
from longvita.inference.errors import PromptError
from longvita.inference.limits import LengthError
from longvita.inference.prompt_encoder import PromptEncoder
from longvita.inference.sampling import Sampling

if TYPE_CHECKING:
    from longvita.inference.engine import Engine

COLUMNS = ("videoID", "question_id", "duration", "domain", "sub_category", "task_type", "question", "options", "answer")
BREAKDOWNS = ("duration", "domain", "task_type", "sub_category")
"""Columns by which scores are broken down."""
MAX_NEW_TOKENS = 16
_COST = {"short": 1.0, "medium": 6.0, "long": 30.0}
"""Approximate minutes of a video."""


@dataclasses.dataclass(frozen=True)
class VideoQuestion:
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


class VideoMME(EvaluationTask):
    """The Video-MME benchmark.

    Args:
        folder: the data set.
        subtitles: whether to show subtitles with the questions, where a video has some.
        limit: ask only this many questions, the first ones; all when None.

    Raises DataSetError for a folder that does not exist, or that lacks questions, videos or subtitles.
    """

    name = "video_mme"

    def __init__(self, folder: Path, subtitles: bool = False, limit: int | None = None):
        self.folder, self.subtitles = folder, subtitles
        self.questions = {question.question_id: question for question in read_questions(folder)[:limit]}
        self._videos = MediaFiles(folder, VIDEO_SUFFIXES)
        self._subtitles = MediaFiles(folder, (".srt",)) if subtitles else None
        names = {question.video for question in self.questions.values()}
        if not any(name in self._videos for name in names):
            raise DataSetError(f"{folder} holds none of the {len(names)} videos, such as {min(names)}.mp4")
        if self._subtitles is not None and not any(name in self._subtitles for name in names):
            raise DataSetError(f"{folder} holds no subtitles (.srt) of these videos; ask without --subtitles")

    @override
    def identity(self, config: Config) -> Mapping[str, Any]:
        return {
            "data": str(self.folder.resolve()),
            "subtitles": self.subtitles,
            "max_num_frames": config.inference.max_num_frames,
            "max_fps": config.data.max_fps,
            "frame_sampling": config.data.frame_sampling,
            "max_seq_len": config.inference.max_seq_len,
        }

    @override
    def check(self, encoder: PromptEncoder) -> None:
        asked = list(self.questions.values())
        if self._frames_that_fit(asked, [], encoder) < 1:
            raise self._no_room(asked, encoder)

    @override
    def items(self) -> Sequence[EvaluationItem]:
        return [
            EvaluationItem(q.question_id, digest_of(dataclasses.astuple(q)), q.video, _COST.get(q.duration, 1.0))
            for q in self.questions.values()
        ]

    @override
    def prepare(self, item: EvaluationItem) -> None:
        video = self.questions[item.key].video
        self._videos.path(video, "video")
        self._subtitle_file(video)

    def _subtitle_file(self, video: str) -> Path | None:
        if self._subtitles is None or video not in self._subtitles:
            return None
        return self._subtitles.path(video, "subtitle")

    @override
    def encode(self, engine: Engine, item: EvaluationItem) -> ItemPrompt:
        question, encoder = self.questions[item.key], engine.encoder
        path = self._videos.path(question.video, "video")
        frames, lines = self._shown(question.video, path, encoder)
        messages = [{"role": "user", "content": "<video>\n" + prompt_text(question, lines)}]
        prompt = encoder.encode(messages, videos=[path], max_num_frames=len(frames))
        facts = {"frames": frames, "subtitles": len(lines), "prompt_tokens": len(prompt)}
        return ItemPrompt(prompt, dataclasses.asdict(question) | facts)

    @override
    def ask(self, engine: Engine, item: EvaluationItem, asked: ItemPrompt) -> AnswerRecord:
        question = self.questions[item.key]
        answer = "".join(engine.answer(asked.prompt, Sampling(max_new_tokens=MAX_NEW_TOKENS)))
        chosen = chosen_option(answer, question.options)
        return {"response": answer, "chosen": chosen, "right": chosen == question.answer}

    def _shown(self, video: str, path: Path, encoder: PromptEncoder) -> tuple[list[int], list[str]]:
        """Choose the frames that the model sees of a video, by index, and the subtitles at them.

        As many frames as fit next to the video's longest question: they are identical for all its questions, so that
        the prompts have a common prefix.
        """
        config = encoder.config
        asked = [question for question in self.questions.values() if question.video == video]
        try:
            facts, own = probe_video(path), self._subtitle_file(video)
            # Times cost a pass over the film.
            times = frame_times(path, facts) if own or config.data.frame_sampling == "time" else ()
            subtitles = read_srt(own) if own else []
        except (SampleError, OSError) as error:
            raise PromptError(str(error)) from error

        def shown(limit: int) -> tuple[list[int], list[str]]:
            frames = selected_frames(facts, config.data.max_fps, limit, config.data.frame_sampling, times)
            return frames, texts_at(subtitles, [times[frame] for frame in frames] if subtitles else [])

        def fits(limit: int) -> bool:
            frames, lines = shown(limit)
            return len(frames) <= self._frames_that_fit(asked, lines, encoder)

        # The number of subtitles grows with that of the frames, so the largest limit that fits is found by bisection.
        limits = range(1, config.inference.max_num_frames + 1)
        fitting = bisect.bisect_left(limits, True, key=lambda limit: not fits(limit))
        if fitting == 0:
            raise self._no_room(asked, encoder)
        return shown(limits[fitting - 1])

    @staticmethod
    def _frames_that_fit(questions: Sequence[VideoQuestion], lines: Sequence[str], encoder: PromptEncoder) -> int:
        """Return the number of frames that fit next to the longest of some questions; below 1 if none does."""
        template = encoder.template
        text = max(template.text_length((Turn("user", prompt_text(question, lines)),)) for question in questions)
        opening = len(template.encode_prompt([Turn("user", "?")], [], []).input_ids)
        room = encoder.config.inference.max_seq_len - text - opening - MAX_NEW_TOKENS
        return room // template.tokens_per_frame

    @staticmethod
    def _no_room(questions: Sequence[VideoQuestion], encoder: PromptEncoder) -> LengthError:
        return LengthError(
            f"--max-seq-len {encoder.config.inference.max_seq_len} leaves no room for a frame of "
            f"{encoder.template.tokens_per_frame} tokens next to the questions about {questions[0].video}; raise it"
        )

    @override
    def score(self, records: Mapping[str, AnswerRecord]) -> dict[str, Any]:
        return score(self._described(records))

    @override
    def illustrate(self, records: Mapping[str, AnswerRecord], folder: Path) -> None:
        wrong = [record for record in self._described(records) if not record.get("right")]
        write_mistakes_page(folder / "wrong.html", wrong, lambda name: self._videos.path(name, "video"))

    def _described(self, records: Mapping[str, AnswerRecord]) -> list[AnswerRecord]:
        return [{**dataclasses.asdict(question), **records[key]} for key, question in self.questions.items()]


def read_questions(folder: Path) -> list[VideoQuestion]:
    """Read the questions of a data set, in its order. Raises DataSetError."""
    if not folder.is_dir():
        raise DataSetError(f"the data set {folder} is not a folder; give the folder of Video-MME with --data")
    paths = [path for path in files_below(folder) if path.suffix == ".parquet"]
    if not paths:
        raise DataSetError(f"{folder} holds no .parquet file; Video-MME has videomme/test-00000-of-00001.parquet")
    questions = []
    for row in read_rows(paths, COLUMNS):
        values = {column: str(row[column]) for column in COLUMNS if column != "options"}
        options = _read_options(row["options"], f"question {values['question_id']} of {folder}")
        if values["answer"] not in LETTERS[: len(options)]:
            raise DataSetError(
                f"question {values['question_id']} of {folder} has the options {shorten(list(options))} and the "
                f"answer {shorten(repr(values['answer']))}, which is not the letter of one of them"
            )
        questions.append(VideoQuestion(video=values.pop("videoID"), options=options, **values))
    repeated = len(questions) - len({question.question_id for question in questions})
    if repeated:
        raise DataSetError(f"{repeated} questions of {folder} have the same question_id as another")
    return questions


def _read_options(value: Any, where: str) -> tuple[str, ...]:
    """The options of a question with their letters. Raises DataSetError, which begins with `where`."""
    if not isinstance(value, list) or not all(isinstance(option, str | int | float) for option in value):
        raise DataSetError(f"{where} has the options {shorten(repr(value))}, which are no list of texts; fix the table")
    try:
        return with_letters([str(option) for option in value])
    except ValueError as error:
        raise DataSetError(f"{where} has the options {shorten(repr(value))}: {error}; fix the table") from error


def prompt_text(question: VideoQuestion, subtitles: Sequence[str]) -> str:
    """Compose the benchmark's prompt, subtitles before the question: prompts about one video have a common prefix."""
    *first, last = tuple(LETTERS[: len(question.options)])
    shown = "This video's subtitles are listed below:\n" + "\n".join(subtitles) + "\n" if subtitles else ""
    sources = "the video and the subtitles" if subtitles else "the video"
    options = "\n".join(question.options)
    return (
        f"{shown}Select the best answer to the following multiple-choice question based on {sources}. Respond with "
        f"only the letter ({', '.join(first)}, or {last}) of the correct option.\n"
        f"{question.question}\n{options}\nThe best answer is:"
    )


def score(records: Sequence[AnswerRecord]) -> dict[str, Any]:
    """Count right and asked questions, over all and by each of BREAKDOWNS, and `failed` and `unclear` ones."""
    scores: dict[str, Any] = {"overall": accuracy(records)}
    for column in BREAKDOWNS:
        values = dict.fromkeys(record[column] for record in records)
        scores[column] = {value: accuracy([r for r in records if r[column] == value]) for value in values}
    scores["failed"] = sum("error" in record for record in records)
    scores["unclear"] = sum("error" not in record and record["chosen"] is None for record in records)
    return scores
