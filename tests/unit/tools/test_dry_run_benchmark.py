"""tools/benchmark/dry_run.py recognizes the messages about missing files."""

from __future__ import annotations

import importlib.util

import pytest

from longvita.config import ConfigError
from longvita.data.mix.missing_files import find_training_problems
from longvita.training.launch_check import check
from tests.conftest import REPOSITORY
from tests.tiny import tiny_config


def test_messages_about_missing_files():
    spec = importlib.util.spec_from_file_location("dry_run", REPOSITORY / "tools/benchmark/dry_run.py")
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    data = {"tokenizer": "absent", "dataset": {"one": {"data_paths": ["absent.jsonl"]}}}
    config = tiny_config(data=data, checkpoint={"initial": "absent"})
    with pytest.raises(ConfigError) as refused:
        check(config)
    problems = [*find_training_problems(config), *refused.value.problems]
    assert {problem.field for problem in problems} >= {"data.tokenizer", "checkpoint.initial"}
    for problem in problems:
        assert any(words in problem.message for words in benchmark.MISSING_FILE_MESSAGES), problem.message
