import json

import pytest

from longvita.evaluation.answer_log import AnswerWriter, OutputError, claim, read_answers


def test_an_incomplete_line_is_skipped_and_overwritten(tmp_path):
    writer = AnswerWriter(tmp_path, 0)
    writer.add({"key": "one", "right": True})
    writer.close()
    with (tmp_path / "answers.0.jsonl").open("ab") as file:
        file.write(b'{"key": "two", "rig')
    assert read_answers(tmp_path) == {"one": {"key": "one", "right": True}}
    writer = AnswerWriter(tmp_path, 0)
    writer.add({"key": "three", "right": False})
    writer.close()
    lines = (tmp_path / "answers.0.jsonl").read_text().splitlines()
    assert [json.loads(line)["key"] for line in lines] == ["one", "three"]


def test_an_answer_counts_more_than_a_failure_in_either_order(tmp_path):
    for replica, records in enumerate(
        [[{"key": "a", "x": 1}, {"key": "b", "error": "no"}], [{"key": "a", "error": "n"}]]
    ):
        writer = AnswerWriter(tmp_path, replica)
        for record in records:
            writer.add(record)
        writer.close()
    assert read_answers(tmp_path) == {"a": {"key": "a", "x": 1}, "b": {"key": "b", "error": "no"}}
    writer = AnswerWriter(tmp_path, 1)
    writer.add({"key": "b", "x": 2})
    writer.close()
    assert read_answers(tmp_path)["b"] == {"key": "b", "x": 2}


def test_a_folder_belongs_to_one_run(tmp_path):
    claim(tmp_path / "out", {"model": "m", "max_num_frames": 64, "depths": (0.5,)})
    claim(tmp_path / "out", {"model": "m", "max_num_frames": 64, "depths": [0.5]})
    with pytest.raises(OutputError, match="max_num_frames 64 there and 32 here"):
        claim(tmp_path / "out", {"model": "m", "max_num_frames": 32, "depths": [0.5]})
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="choose another with --output"):
        claim(tmp_path / "file", {})


def test_a_process_that_does_not_write_only_compares(tmp_path):
    claim(tmp_path / "out", {"model": "m"}, write=False)
    assert not (tmp_path / "out").exists()
    claim(tmp_path / "out", {"model": "m"})
    with pytest.raises(OutputError, match="model 'm' there and 'other' here"):
        claim(tmp_path / "out", {"model": "other"}, write=False)


def test_damage_and_a_folder_that_cannot_be_written_are_reported(tmp_path):
    (tmp_path / "answers.0.jsonl").write_text("no JSON\n")
    with pytest.raises(OutputError, match=r"answers\.0\.jsonl is damaged"):
        read_answers(tmp_path)
    with pytest.raises(OutputError, match="cannot be written"):
        AnswerWriter(tmp_path / "nowhere", 0)
