"""Lines of JSON in a file that a run can do without."""

from __future__ import annotations

import logging

from longvita.files import append_json, read_json_lines


def test_a_cut_line_costs_itself_alone(tmp_path, caplog):
    path = tmp_path / "run" / "events.jsonl"
    append_json(path, {"step": 1})
    with path.open("ab") as file:
        file.write(b'{"step": 2, "cu')
    append_json(path, {"step": 3})
    with caplog.at_level(logging.WARNING):
        assert read_json_lines(path) == [{"step": 1}, {"step": 3}]
    assert "no JSON is left out" in caplog.text
    assert read_json_lines(tmp_path / "absent") == []


def test_a_file_that_cannot_be_written_costs_a_warning(tmp_path, caplog):
    (tmp_path / "run").write_text("no folder")
    append_json(tmp_path / "run" / "events.jsonl", {"step": 1})
    assert "a line is not written" in caplog.text
