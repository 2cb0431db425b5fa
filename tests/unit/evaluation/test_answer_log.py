import json

import pytest

from longvita.evaluation.answer_log import AnswerWriter, OutputError, claim, read_answers
from longvita.evaluation.task import EvaluationItem

ITEMS = [EvaluationItem(key, f"digest of {key}", "group", 1.0) for key in ("one", "two", "three", "a", "b")]


def record(key, **fields):
    return {"key": key, "digest": f"digest of {key}", **fields}


def test_an_incomplete_line_is_skipped_and_overwritten(tmp_path):
    writer = AnswerWriter(tmp_path, 0)
    writer.add(record("one", right=True))
    writer.close()
    with (tmp_path / "answers.0.jsonl").open("ab") as file:
        file.write(b'{"key": "two", "rig')
    assert read_answers(tmp_path, ITEMS) == {"one": record("one", right=True)}
    writer = AnswerWriter(tmp_path, 0)
    writer.add(record("three", right=False))
    writer.close()
    lines = (tmp_path / "answers.0.jsonl").read_text().splitlines()
    assert [json.loads(line)["key"] for line in lines] == ["one", "three"]


def test_an_answer_counts_more_than_a_failure_in_either_order(tmp_path):
    for replica, records in enumerate([[record("a", x=1), record("b", error="no")], [record("a", error="n")]]):
        writer = AnswerWriter(tmp_path, replica)
        for answer in records:
            writer.add(answer)
        writer.close()
    assert read_answers(tmp_path, ITEMS) == {"a": record("a", x=1), "b": record("b", error="no")}
    writer = AnswerWriter(tmp_path, 1)
    writer.add(record("b", x=2))
    writer.close()
    assert read_answers(tmp_path, ITEMS)["b"] == record("b", x=2)


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
    for line in ("no JSON", "[]", '{"key": "one"}'):
        (tmp_path / "answers.0.jsonl").write_text(f"{line}\n")
        with pytest.raises(OutputError, match=r"answers\.0\.jsonl is damaged"):
            read_answers(tmp_path, ITEMS)
    with pytest.raises(OutputError, match="cannot be written"):
        AnswerWriter(tmp_path / "nowhere", 0)


def test_an_answer_to_an_item_that_has_changed_does_not_count(tmp_path):
    earlier = record("a", x=1) | {"digest": "earlier"}
    for replica, answers in enumerate([[record("a", x=2)], [earlier, record("c", x=1)]]):
        writer = AnswerWriter(tmp_path, replica)
        for answer in answers:
            writer.add(answer)
        writer.close()
    assert read_answers(tmp_path, ITEMS) == {"a": record("a", x=2)}
