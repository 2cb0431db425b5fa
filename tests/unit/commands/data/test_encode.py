from __future__ import annotations

import json

import numpy as np
from typer.testing import CliRunner

from longvita.cli import app
from longvita.data.chat_template import IGNORED_LABEL
from longvita.data.errors import DataError
from tests.unit.data.format_material import dump_json, llava, png, write_parquet, write_tar
from tests.unit.data.material import conversation, write_jsonl

SAMPLES = [
    conversation("hello"),
    conversation("<image>?", images=["wide.jpg"]),
    conversation("<video>?", videos=["clip.mp4"]),
]
BROKEN = ["{oops", conversation(""), conversation("<video>", videos=["cut.mp4"])]


def run(folder, samples, *options):
    path = write_jsonl(folder / "a.jsonl", samples)
    arguments = ["--tokenizer", folder / "tokenizer", "--media-root", folder / "media", "--tokens-per-tile", 4]
    arguments += ["--image-size", 28, "--max-tiles", 4, *options]
    return CliRunner().invoke(app, ["data", "encode", str(path), *map(str, arguments)])


def test_one_object_a_sample(folder, tokenizer):
    result = run(folder, SAMPLES, "--json", "--max-frames", 5)
    assert result.exit_code == 0
    objects = [json.loads(line) for line in result.stdout.splitlines()]
    assert [set(value) for value in objects] == [{"input_ids", "labels", "tile_starts", "num_tiles"}] * 3
    assert [value["num_tiles"] for value in objects] == [0, 4, 5]
    for value in objects:
        assert len(value["input_ids"]) == len(value["labels"])
        answer = [label for label in value["labels"] if label != IGNORED_LABEL]
        assert tokenizer.decode(answer) == "yes<|im_end|>\n"
        starts = np.asarray(value["tile_starts"], int)
        assert all(len(set(value["input_ids"][start : start + 4])) == 1 for start in starts)
    assert "3 samples encoded, 0 broken" in result.stderr


def test_files_of_a_pattern_a_range_and_a_folder_of_tables(folder):
    write_tar(folder / "s-0.tar", [("1.png", png("red")), ("1.txt", "red")])
    write_tar(folder / "s-1.tar", [("1.png", png("blue")), ("1.json", "{oops")])
    (folder / "tables" / "data").mkdir(parents=True)
    write_parquet(folder / "tables" / "data" / "train-0.parquet", [{"caption": "it", "image": png("gold")}])
    for entry, encoded, broken in (("s-*.tar", 1, 1), ("s-{0..1}.tar", 1, 1), ("tables", 1, 0)):
        result = CliRunner().invoke(
            app, ["data", "encode", str(folder / entry), "--tokenizer", str(folder / "tokenizer")]
        )
        assert f"{encoded} samples encoded, {broken} broken" in result.stderr, result.exception
        assert (f"{folder}/s-1.tar: line 1: invalid_json" in result.stderr) == bool(broken)
    result = CliRunner().invoke(app, ["data", "encode", str(folder / "no-*.tar"), "--tokenizer", "tokenizer"])
    assert result.exit_code != 0


def test_frames_a_second(folder):
    result = run(folder, SAMPLES[2:], "--json", "--max-fps", 0.3)
    assert json.loads(result.stdout)["num_tiles"] == 3


def test_broken_samples_are_printed_and_counted(folder):
    result = run(folder, [SAMPLES[0], *BROKEN, SAMPLES[1]], "--json")
    assert result.exit_code == 1
    assert len(result.stdout.splitlines()) == 2
    *errors, summary = result.stderr.splitlines()
    printed = [json.loads(line) for line in errors if line.startswith("{")]
    assert [(value["line"], value["reason"]) for value in printed] == [
        (2, "invalid_json"),
        (3, "empty_turn"),
        (4, "broken_video"),
    ]
    assert summary.startswith("2 samples encoded, 3 broken (")
    assert "broken_video 1" in summary


def test_headers_only_does_not_see_lost_frames(folder):
    assert run(folder, BROKEN[2:], "--json", "--headers-only").exit_code == 0


def test_to_read(folder):
    result = run(folder, SAMPLES[1:2])
    assert result.stdout.startswith("line 1: ")
    assert result.stdout.rstrip().endswith("5 with loss, 4 tiles")


def test_any_format(folder):
    options = ["--tokenizer", folder / "tokenizer", "--media-root", folder / "media", "--tokens-per-tile", 1, "--json"]
    options += ["--image-size", 28, "--headers-only"]
    rows = [{"label": 3, "image": {"bytes": png("red"), "path": None}}, {"label": None, "image": None}]
    files = {
        dump_json(folder / "a.json", [llava("<image>?", image="wide.jpg"), llava("")]): [],
        write_parquet(folder / "a.parquet", rows): ["--column", "caption=label", "--prompt", "What?"],
        write_tar(folder / "a.tar", [("1.png", png("red")), ("1.txt", "red"), ("2.png", png("red"))]): [],
        write_tar(folder / "archive", [("1.png", png("red")), ("1.txt", "red"), ("2.png", png("red"))]): [
            "--format",
            "webdataset",
        ],
    }
    for path, own in files.items():
        result = CliRunner().invoke(app, ["data", "encode", str(path), *map(str, options), *own])
        assert result.exit_code == 1, result.output
        assert json.loads(result.stdout)["num_tiles"] >= 1
        assert json.loads(result.stderr.splitlines()[0])["line"] == 2


def test_no_such_file(folder):
    result = CliRunner().invoke(app, ["data", "encode", "none.jsonl", "--tokenizer", str(folder / "tokenizer")])
    assert isinstance(result.exception, DataError)
    assert "none.jsonl does not exist" in str(result.exception)
