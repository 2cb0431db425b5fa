"""`longvita evaluate` and scripts/evaluate.sh, with a model that always answers B: scores can be counted by hand."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from tests.clips import clip
from tests.conftest import REPOSITORY
from tests.tiny_folder import TinyModel, write_tiny_model

LIMIT = 280
# (video, its clip, duration, domain, task type, right answers to its questions): 5 of 12 are B.
VIDEOS = [
    ("rabbit", "bigbuckbunny.mp4", "short", "Film", "Counting", "BABC"),
    ("street", "bikes.mp4", "medium", "Life", "Action", "CDBB"),
    ("driver", "carphone_pristine.mp4", "long", "Life", "Counting", "ADBA"),
]
SRT = "1\n00:00:00,000 --> 00:00:02,000\nA rabbit wakes up.\n\n2\n00:10:00,000 --> 00:10:01,000\nNever seen.\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return write_tiny_model(tmp_path_factory.mktemp("model"), says="B")


def write_data(folder: Path) -> Path:
    """Video-MME as it is downloaded: one video unpacked, the others and the subtitles in .zip files."""
    rows = [
        {
            "video_id": f"{number:03d}",
            "videoID": name,
            "question_id": f"{number:03d}-{place + 1}",
            "duration": duration,
            "domain": domain,
            "sub_category": "Some",
            "task_type": task,
            "question": f"What is {place}?",
            "options": ["A. This.", "B. That.", "C. Neither.", "D. Both."],
            "answer": answer,
        }
        for number, (name, _, duration, domain, task, answers) in enumerate(VIDEOS)
        for place, answer in enumerate(answers)
    ]
    (folder / "videomme").mkdir(parents=True)
    parquet.write_table(pa.Table.from_pylist(rows), folder / "videomme" / "test-00000-of-00001.parquet")
    (folder / "video").mkdir()
    shutil.copy(clip(VIDEOS[0][1]), folder / "video" / "rabbit.mp4")
    with zipfile.ZipFile(folder / "videos_chunked_01.zip", "w") as archive:
        for name, file, *_ in VIDEOS[1:]:
            archive.write(clip(file), f"data/{name}.mp4")
    with zipfile.ZipFile(folder / "subtitle.zip", "w") as archive:
        archive.writestr("subtitle/rabbit.srt", SRT)
    return folder


def command(model: Path, data: Path, output: Path, *arguments: object) -> list[str]:
    options = ["--task", "video_mme", "--data", data, "--output", output, "--max-num-frames", 6, *arguments]
    return [sys.executable, "-m", "longvita", "evaluate", str(model), *map(str, options)]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def run(line: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        line, capture_output=True, text=True, timeout=LIMIT, cwd=REPOSITORY, env=environment(), check=False
    )


def answers(folder: Path) -> list[dict]:
    lines = [line for path in sorted(folder.glob("answers.*.jsonl")) for line in path.read_bytes().split(b"\n")[:-1]]
    return [json.loads(line) for line in lines]


def kill_after_some(line: list[str], output: Path, wanted: int) -> None:
    """Starts the command and kills all its processes once `wanted` answers are written."""
    process = subprocess.Popen(
        line, cwd=REPOSITORY, env=environment(), start_new_session=True, stderr=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        deadline = time.monotonic() + LIMIT
        while len(answers(output)) < wanted:
            assert process.poll() is None, f"it ended before it was killed: {process.communicate()}"
            assert time.monotonic() < deadline, "no answers"
            time.sleep(0.005)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_killed_and_resumed_at_another_layout_the_scores_are_those_counted_by_hand(model, tmp_path):
    data, output = write_data(tmp_path / "data"), tmp_path / "out"
    kill_after_some(command(model.folder, data, output, "--layout", "cp=2"), output, 2)
    before = answers(output)
    assert 2 <= len(before) < 12
    result = run(command(model.folder, data, output, "--replicas", 2))
    assert result.returncode == 0, result.stderr
    after = answers(output)
    assert [record for record in after if record in before] == before
    assert sorted(record["key"] for record in after) == [f"{n:03d}-{place}" for n in range(3) for place in range(1, 5)]
    assert {record["response"] for record in after} == {"B"}
    assert (output / "answers.1.jsonl").stat().st_size > 0
    scores = json.loads((output / "scores.json").read_text())
    assert scores["overall"] == {"right": 5, "asked": 12, "accuracy": 5 / 12}
    parts = {
        column: {name: part["right"] for name, part in scores[column].items()} for column in ("duration", "domain")
    }
    assert parts == {"duration": {"short": 2, "medium": 2, "long": 1}, "domain": {"Film": 2, "Life": 3}}
    assert {name: (part["right"], part["asked"]) for name, part in scores["task_type"].items()} == {
        "Counting": (3, 8),
        "Action": (2, 4),
    }
    assert (scores["failed"], scores["unclear"]) == (0, 0)
    assert "accuracy 0.4167 (5 of 12)" in result.stdout
    page = (output / "wrong.html").read_text()
    assert "7 questions without the right answer" in page
    assert page.count("<article>") == 7
    # Six frames of each wrong answer's video; the last has five at one a second.
    assert page.count("data:image/jpeg;base64,") == 2 * 6 + 2 * 6 + 3 * 5
    again = run(command(model.folder, data, output))
    assert (again.returncode, answers(output)) == (0, after)


def test_other_settings_and_wrong_data_are_refused(model, tmp_path):
    data, output = write_data(tmp_path / "data"), tmp_path / "out"
    assert run(command(model.folder, data, output, "--limit", 1)).returncode == 0
    other = run(command(model.folder, data, output, "--max-num-frames", 3))
    assert (other.returncode, other.stdout) == (2, "")
    assert "max_num_frames 6 there and 3 here" in other.stderr
    for arguments, message in (
        (("--task", "video-mme"), "is not one of"),
        (("--data", tmp_path / "nowhere"), "is not a folder"),
        (("--replicas", 0), "--replicas is 0"),
    ):
        refused = run(command(model.folder, data, tmp_path / "new", *arguments))
        assert refused.returncode == 2, refused.stderr
        assert message in refused.stderr
        assert "Traceback" not in refused.stderr


def test_questions_about_a_broken_video_fail_and_are_asked_again(model, tmp_path):
    data, output = write_data(tmp_path / "data"), tmp_path / "out"
    whole = (data / "video" / "rabbit.mp4").read_bytes()
    (data / "video" / "rabbit.mp4").write_bytes(b"no video")
    first = run(command(model.folder, data, output, "--layout", "cp=2"))
    assert first.returncode == 1, first.stderr
    assert "4 items could not be asked" in first.stdout
    failed = [record for record in answers(output) if "error" in record]
    assert [record["key"] for record in failed] == [f"000-{place}" for place in range(1, 5)]
    assert all("rabbit.mp4" in record["error"] for record in failed)
    assert "failed: video" in (output / "wrong.html").read_text()
    (data / "video" / "rabbit.mp4").write_bytes(whole)
    second = run(command(model.folder, data, output))
    assert second.returncode == 0, second.stderr
    assert json.loads((output / "scores.json").read_text())["overall"]["right"] == 5


def test_the_script_asks_without_and_with_subtitles(model, tmp_path):
    data, output = write_data(tmp_path / "data"), tmp_path / "out"
    result = run(["bash", "scripts/evaluate.sh", str(model.folder), str(data), str(output), "--max-num-frames", "6"])
    assert result.returncode == 0, result.stderr
    lengths = {}
    for variant in ("without_subtitles", "with_subtitles"):
        records = {record["key"]: record for record in answers(output / variant)}
        assert len(records) == 12
        assert json.loads((output / variant / "scores.json").read_text())["overall"]["right"] == 5
        lengths[variant] = {key: (record["prompt_tokens"], record["subtitles"]) for key, record in records.items()}
    with_subtitles, without = lengths["with_subtitles"], lengths["without_subtitles"]
    # Only the rabbit has subtitles, and one of its two is on screen.
    assert {key for key in without if with_subtitles[key] != without[key]} == {f"000-{n}" for n in range(1, 5)}
    assert all(with_subtitles[f"000-{n}"][1] == 1 for n in range(1, 5))
    assert with_subtitles["000-1"][0] > without["000-1"][0]
    usage = run(["bash", "scripts/evaluate.sh", str(model.folder)])
    assert (usage.returncode, usage.stderr.startswith("usage:")) == (2, True)


def test_needles(model, tmp_path):
    data, output = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    shutil.copy(clip("bikes.mp4"), data / "film.mp4")
    lines = []
    for name, answer in (("one", "B"), ("two", "C")):
        Image.new("RGB", (60, 40), "red").save(data / f"{name}.png")
        lines.append(json.dumps({"image": f"{name}.png", "question": "Which letter is red?", "answer": answer}))
    (data / "needles.jsonl").write_text("\n".join(lines))
    options = ["--task", "needle", "--data", data, "--output", output, "--lengths", "4,9", "--depths", "0,0.5,1"]
    result = run(
        [sys.executable, "-m", "longvita", "evaluate", str(model.folder), *map(str, options), "--layout", "cp=2"]
    )
    assert result.returncode == 0, result.stderr
    scores = json.loads((output / "scores.json").read_text())
    assert scores["by_length_and_depth"] == {
        length: {depth: {"right": 1, "asked": 2} for depth in ("0", "0.5", "1")} for length in ("4", "9")
    }
    assert {record["response"] for record in answers(output)} == {"B"}
    assert result.stdout.count("1 of 2") == 6
    with Image.open(output / "needle.png") as picture:
        picture.verify()
    options[options.index("4,9")] = "4,90"
    short = run([sys.executable, "-m", "longvita", "evaluate", str(model.folder), *map(str, options)])
    assert short.returncode == 2
    assert "has 10 frames at one a second, but 90 are asked for" in short.stderr
