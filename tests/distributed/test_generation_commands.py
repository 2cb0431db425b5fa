"""The demo, `longvita generate` and `longvita chat` as a user starts them, on one process and on two."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.distributed.helpers import free_port
from tests.tiny_folder import POSITIONS, TinyModel, write_tiny_model

ROOT = Path(__file__).parents[2]
DEMO = str(ROOT / "tools" / "video_audio_demo.py")
QUESTION = "What is in the picture?"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return write_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """picture.png, a folder of frames, and the question as a file."""
    folder = tmp_path_factory.mktemp("media")
    Image.radial_gradient("L").convert("RGB").resize((90, 60)).save(folder / "picture.png")
    (folder / "clip").mkdir()
    for number in range(6):
        Image.new("RGB", (40, 30), (40 * number, 250 - 40 * number, 90)).save(folder / "clip" / f"{number}.png")
    (folder / "question.txt").write_text(QUESTION + "\n")
    return folder


def run(*command: object, lines: list[str] | None = None) -> subprocess.CompletedProcess[str]:
    process = subprocess.Popen(
        [sys.executable, *map(str, command)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    try:
        out, err = process.communicate("\n".join(lines or []), timeout=280)
    except subprocess.TimeoutExpired:
        # The launcher's processes are in its session and must not outlive the test.
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def distributed() -> list[str]:
    return ["-m", "torch.distributed.launch", "--nproc_per_node=2", f"--master_port={free_port()}"]


def demo(model: Path, *arguments: object, launcher: list[str] | None = None) -> subprocess.CompletedProcess[str]:
    kind = ["--model_type", "qwen2p5_instruct", "--conv_mode", "qwen2p5_instruct", "--max_new_tokens", 12]
    return run(*(launcher or []), DEMO, "--model_path", model, *kind, *arguments)


def test_the_demo_answers_alike_on_one_process_and_on_two(model: TinyModel, media: Path) -> None:
    arguments = ["--video_path", media / "clip", "--max_seq_len", POSITIONS, "--max_num_frame", 4]
    one = demo(model.folder, *arguments, "--question", QUESTION)
    two = demo(model.folder, *arguments, "--question", media / "question.txt", launcher=distributed())
    assert one.returncode == 0, one.stderr
    assert two.returncode == 0, two.stderr
    assert one.stdout.strip()
    assert one.stdout == two.stdout
    assert "layout: tp=1,cp=2 over 2 processes" in two.stderr
    assert two.stderr.count("layout:") == 1


def test_the_demo_refuses_a_long_video_and_a_broken_picture(model: TinyModel, media: Path, tmp_path: Path) -> None:
    long = demo(model.folder, "--video_path", media / "clip", "--question", QUESTION, "--max_seq_len", 40)
    assert (long.returncode, long.stdout) == (2, "")
    assert "--max-seq-len is 40; --max-num-frames" in long.stderr
    (tmp_path / "broken.png").write_bytes(b"\x89PNG but no more")
    broken = demo(model.folder, "--image_path", tmp_path / "broken.png", "--question", QUESTION, launcher=distributed())
    assert broken.returncode != 0
    assert broken.stderr.count("error: picture") == 1
    assert 'File "' not in broken.stderr.split("error: picture")[0]


def test_generate_takes_a_checkpoint_at_another_layout(model: TinyModel, media: Path) -> None:
    arguments = ["--image", media / "picture.png", "--question", QUESTION, "--max-new-tokens", 12]
    folder = run("-m", "longvita", "generate", model.folder, *arguments)
    assert folder.returncode == 0, folder.stderr
    assert folder.stdout.strip()
    for layout in ("pp=2", "cp=2"):
        checkpoint = run("-m", "longvita", "generate", model.checkpoint, *arguments, "--layout", layout)
        assert checkpoint.returncode == 0, checkpoint.stderr
        assert folder.stdout == checkpoint.stdout


def test_chat_takes_turns_alike_on_one_process_and_on_two(model: TinyModel, media: Path) -> None:
    lines = [f"/image {media / 'picture.png'}", QUESTION, "", "/image nowhere.png", "/dance", "<image> and?", "Again?"]
    lines += ["/reset", f"/image {media / 'picture.png'}", QUESTION, "/quit", "never read"]
    command = ["-m", "longvita", "chat", model.folder, "--max-new-tokens", 12]
    one = run(*command, lines=lines)
    two = run(*command, "--layout", "tp=2,sp=true", lines=lines)
    assert one.returncode == 0, one.stderr
    assert two.returncode == 0, two.stderr
    assert one.stdout == two.stdout
    for message in ("nowhere.png does not exist", "there is no command /dance", "1 <image> and 0 <video> marks"):
        assert message in one.stdout
    before, after = one.stdout.split("a new conversation\n")
    shown = "is shown with the next question\n"
    # A conversation that is started again has the answers of the first.
    answer = after.split(shown)[1]
    assert answer.strip()
    assert before.split(shown)[1].startswith(answer)
