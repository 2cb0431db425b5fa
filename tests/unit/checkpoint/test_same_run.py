"""Changes of a config with which a run may not resume."""

from __future__ import annotations

from pathlib import Path

import pytest

from longvita.checkpoint.errors import CheckpointError
from longvita.checkpoint.same_run import check_same_run
from longvita.config import dump
from tests.tiny import tiny_config


def test_sources_in_another_order_are_refused() -> None:
    """Samples are numbered in the order of the sources, and a checkpoint holds a position in that order."""
    words, pictures = {"data_paths": ["words.jsonl"]}, {"data_paths": ["pictures.jsonl"]}
    saved = dump(tiny_config(data={"dataset": {"words": words, "pictures": pictures}}))
    other = dump(tiny_config(data={"dataset": {"pictures": pictures, "words": words}}))
    check_same_run(saved, saved, Path("run"))
    order = "data.dataset has its sources in the order pictures, words, in the checkpoint words, pictures"
    with pytest.raises(CheckpointError, match=order):
        check_same_run(saved, other, Path("run"))
