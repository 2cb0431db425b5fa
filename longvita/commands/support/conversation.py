"""A conversation: its turns so far, and the pictures and videos for the next question."""

from __future__ import annotations

from longvita.commands.support.typed_path import typed_path
from longvita.data.errors import SampleError
from longvita.data.media.item import probe_media
from longvita.data.sample import IMAGE_MARK, VIDEO_MARK, mark_media
from longvita.inference.errors import PromptError


class Conversation:
    """The turns, and the paths of their pictures and videos in the order of the marks."""

    def __init__(self, max_fps: float):
        self.max_fps = max_fps
        self.reset()

    def reset(self) -> None:
        """Start an empty conversation."""
        self.messages: list[dict[str, str]] = []
        self.images: list[str] = []
        self.videos: list[str] = []
        self._shown: tuple[int, int] = (0, 0)

    def show_picture(self, text: str) -> str:
        """Show a picture with the next question and return its path, of a typed one.

        Raises PromptError when its header cannot be read.
        """
        path = typed_path(text)
        self._probe([path], [])
        self.images.append(path)
        return path

    def show_video(self, text: str) -> str:
        """Show a video with the next question; arguments as for `show_picture`."""
        path = typed_path(text)
        self._probe([], [path])
        self.videos.append(path)
        return path

    def drop(self) -> list[str]:
        """Remove the pictures and videos shown since the last answer, and return their paths."""
        images, videos = self._shown
        dropped = [*self.images[images:], *self.videos[videos:]]
        del self.images[images:], self.videos[videos:]
        return dropped

    def _probe(self, images: list[str], videos: list[str]) -> None:
        try:
            probe_media(images, videos, self.max_fps)
        except SampleError as error:
            raise PromptError(str(error)) from error

    def with_question(self, question: str) -> list[dict[str, str]]:
        """The messages with one more question, which `keep` makes part of the conversation.

        Pictures and videos shown since the last question come before it, unless it has marks for them. Raises
        PromptError when the numbers of its marks differ from theirs.
        """
        images, videos = len(self.images) - self._shown[0], len(self.videos) - self._shown[1]
        marks = question.count(IMAGE_MARK), question.count(VIDEO_MARK)
        if marks == (0, 0):
            question = mark_media(question, images, videos)
        elif marks != (images, videos):
            raise PromptError(
                f"the question has {marks[0]} {IMAGE_MARK} and {marks[1]} {VIDEO_MARK} marks, but {images} pictures "
                f"and {videos} videos are shown with it; write one mark for each, or none"
            )
        return [*self.messages, {"role": "user", "content": question}]

    def keep(self, messages: list[dict[str, str]], answer: str) -> None:
        """Add the messages of `with_question` and their answer to the conversation."""
        for mark in (IMAGE_MARK, VIDEO_MARK):
            # A mark that the model generated has no picture.
            answer = answer.replace(mark, f"< {mark[1:]}")
        self.messages = [*messages, {"role": "assistant", "content": answer}]
        self._shown = len(self.images), len(self.videos)
