"""Folders in data_paths: which tables are read, and what is said of a folder that holds something else."""

from __future__ import annotations

import pytest

from longvita.config import ConfigError, load, to_yaml
from longvita.data.errors import DataError
from longvita.data.formats import read_samples
from longvita.data.formats.paths import files_of_entry
from longvita.data.formats.record import NO_OPTIONS
from longvita.data.mix.missing_files import find_training_problems
from tests.unit.data.material import data_config


def make(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")
    return folder


@pytest.mark.parametrize(
    "files, found",
    [
        (["data/train-0.parquet", "data/train_extra-0.parquet", "data/test-0.parquet"], ["data/train-0.parquet"]),
        (["train_0.parquet", "train_1.parquet", "train_sft_0.parquet"], ["train_0.parquet", "train_1.parquet"]),
        (["train.parquet", "trainval.parquet"], ["train.parquet"]),
        (["data/train_sft-00000-of-00002-a.parquet", "data/test_sft-0.parquet"],
         ["data/train_sft-00000-of-00002-a.parquet"]),
        (["0000.parquet", "0001.parquet"], ["0000.parquet", "0001.parquet"]),
        (["train-0.parquet", "images.tar"], ["train-0.parquet"]),
    ],
)  # fmt: skip
def test_tables_of_the_training_split(tmp_path, files, found):
    make(tmp_path / "set", *files)
    assert files_of_entry(str(tmp_path), "set/") == [f"set/{name}" for name in found]
    assert files_of_entry(str(tmp_path), "s*t") == [f"set/{name}" for name in found]


@pytest.mark.parametrize(
    "files, problem",
    [
        (["data/train_sft-0.parquet", "data/train_gen-0.parquet", "data/test_sft-0.parquet"],
         "the training splits train_gen, train_sft; fix: name those to train on, such as data_paths: "
         "[set/data/train_gen*.parquet]"),
        (["0.tar", "0.parquet", "1.tar", "1.parquet", "0_stats.json"],
         "has archives (.tar) with a table of the same name each, which has no images; fix: data_paths: [set/*.tar]"),
        (["0.tar", "1.tar", "README.md"], "its files are 2 .tar, 1 .md; fix: data_paths: [set/*.tar]"),
        (["a/0.tar", "b/1.tar"], "2 .tar in the folders a, b; fix: data_paths: [set/*/*.tar]"),
        (["ai2d/train-0.parquet", "ai2d/test-0.parquet", "vqa/train-0.parquet", "README.md"],
         "in the folders ai2d, vqa; fix: data_paths: [set/*/train*.parquet], or one of its folders: [set/ai2d]"),
        (["a.jsonl", "infos.json"], "fix: data_paths: [set/*.jsonl]"),
        (["a/b/c.json"], "fix: data_paths: [set/*/*/*.json]"),
        (["a.xlsx", "LICENSE"], "its files are 1 without a suffix, 1 .xlsx; fix: name its data files in data_paths"),
        ([".hidden"], "the folder set has no files; fix: fetch its files"),
    ],
)  # fmt: skip
def test_other_folders_are_refused_with_the_pattern_to_write(tmp_path, files, problem):
    make(tmp_path / "set", *files)
    for entry in ("set", "set/", "s*t"):
        with pytest.raises(DataError) as caught:
            files_of_entry(str(tmp_path), entry)
        assert problem in str(caught.value)
        assert str(caught.value).count("fix:") == 1


@pytest.mark.parametrize("name", ["a.png", "deep/er/a.mp4", "metadata.jsonl", "captions.csv"])
def test_folders_of_captions(tmp_path, name):
    make(tmp_path / "set", name, "a.txt", "0.tar", "x/train-0.parquet")
    assert files_of_entry(str(tmp_path), "set") == ["set"]


def test_such_a_folder_is_a_problem_of_the_config(folder, write_yaml):
    make(folder / "set", "0.tar")
    config = data_config(folder, {"a": {"data_paths": ["set"], "format": "webdataset"}})
    with pytest.raises(ConfigError, match=r"fix: data_paths: \[set/\*.tar\]"):
        load(write_yaml(to_yaml(config)), more_checks=[find_training_problems])


@pytest.mark.parametrize("name", ["jsonl", "json", "parquet", "webdataset"])
def test_a_folder_is_no_file_of_a_format(tmp_path, name):
    with pytest.raises(DataError, match=f"is a folder, not a file of format {name}; fix: name its files"):
        next(read_samples(str(make(tmp_path, "a.png")), name, NO_OPTIONS))
