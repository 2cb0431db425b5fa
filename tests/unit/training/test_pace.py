"""The times by which a run stops before a step that would not end."""

from __future__ import annotations

from longvita.training.pace import NEWEST, PACE, Pace


def test_the_longest_of_the_newest_counts(tmp_path):
    pace = Pace(tmp_path)
    assert pace.needed(validates=True) == 0.0
    pace.steps.extend([900.0, *[2.0] * (NEWEST - 1)])
    assert pace.needed(validates=False) == 900.0
    pace.steps.append(3.0)
    pace.saves.append(40.0)
    pace.validations.append(500.0)
    assert pace.needed(validates=False) == 43.0
    assert pace.needed(validates=True) == 543.0


def test_the_next_start_knows_them(tmp_path):
    pace = Pace(tmp_path)
    pace.steps.append(5.0)
    pace.saves.append(7.0)
    pace.write()
    assert Pace(tmp_path).needed(validates=False) == 12.0


def test_a_damaged_file_is_as_none(tmp_path):
    (tmp_path / PACE).write_text('{"step_seco')
    assert Pace(tmp_path).needed(validates=True) == 0.0
