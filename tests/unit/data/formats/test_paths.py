"""Entries of data_paths: patterns, ranges, folders of tables, lists of shards."""

from __future__ import annotations

import json

import pytest

from longvita.config import ConfigError, load, to_yaml
from longvita.data.errors import DataError
from longvita.data.formats.paths import files_of_entry, format_of
from longvita.data.mix.catalog import build_catalog, make_template
from longvita.data.mix.missing_files import find_training_problems
from tests.unit.data.format_material import png, write_parquet, write_tar
from tests.unit.data.material import conversation, data_config, write_jsonl


@pytest.fixture
def root(tmp_path):
    for name in ("b.jsonl", "a.jsonl", "c(x).jsonl", "odd[1].jsonl", "deep/d.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    return tmp_path


def names(root, entry):
    return files_of_entry(str(root), entry)


@pytest.mark.parametrize(
    "entry, found",
    [
        ("a.jsonl", ["a.jsonl"]),
        ("none.jsonl", ["none.jsonl"]),
        ("*.tar", ["*.tar"]),
        ("c(x).jsonl", ["c(x).jsonl"]),
        ("odd[1].jsonl", ["odd[1].jsonl"]),
        ("[ab].jsonl", ["a.jsonl", "b.jsonl"]),
        ("*/*.jsonl", ["deep/d.jsonl"]),
        ("**/d.jsonl", ["deep/d.jsonl"]),
        ("s-{08..11}.tar", ["s-08.tar", "s-09.tar", "s-10.tar", "s-11.tar"]),
        ("{0..1}/{2..3}", ["0/2", "0/3", "1/2", "1/3"]),
        ("s-{7..7}", ["s-7"]),
        ("deep{0..0}x", ["deep0x"]),
    ],
)
def test_entries(root, entry, found):
    assert names(root, entry) == found


def test_an_absolute_pattern(root):
    assert files_of_entry("/elsewhere", f"{root}/[ab].jsonl") == [f"{root}/a.jsonl", f"{root}/b.jsonl"]


def test_a_range_of_nothing(root):
    with pytest.raises(DataError, match=r"the range \{3..1\} of \{3..1\}.tar is empty; fix: write \{1..3\}"):
        files_of_entry(str(root), "{3..1}.tar")


def test_folders_of_tables(tmp_path):
    for name in (
        "hub/data/train-0.parquet",
        "hub/data/train-1.parquet",
        "hub/data/test-0.parquet",
        "hub/other.parquet",
    ):
        write_parquet(tmp_path / name, [{"caption": "a"}])
    for name in ("saved/data-00000-of-00002.arrow", "saved/data-00001-of-00002.arrow", "saved/dataset_info.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    for name in ("split/train/data-0.arrow", "split/train/cache-1.arrow", "split/test/data-0.arrow"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text("")
    assert names(tmp_path, "split") == ["split/train/data-0.arrow"]
    (tmp_path / "saved/cache-0123.arrow").write_text("")
    (tmp_path / "pictures/red").mkdir(parents=True)
    (tmp_path / "pictures/red/a.png").write_text("")
    assert names(tmp_path, "hub") == ["hub/data/train-0.parquet", "hub/data/train-1.parquet"]
    assert names(tmp_path, "saved") == ["saved/data-00000-of-00002.arrow", "saved/data-00001-of-00002.arrow"]
    assert names(tmp_path, "pictures") == ["pictures"]


def test_a_list_of_shards(tmp_path):
    shards = [{"url": "s-0.tar", "nsamples": 3}, {"url": "memory://s-1.tar", "nsamples": 4}]
    value = {"__kind__": "wids-shard-index-v1", "wids_version": 1, "shardlist": shards}
    (tmp_path / "list.json").write_text(json.dumps(value))
    (tmp_path / "other.json").write_text("[]")
    assert names(tmp_path, "list.json") == ["s-0.tar", "memory://s-1.tar"]
    assert names(tmp_path, "other.json") == ["other.json"]
    (tmp_path / "list.json").write_text('{"__kind__": "wids-shard-index-v1"}')
    with pytest.raises(DataError, match=r"list.json is not a list of shards: KeyError 'shardlist'"):
        files_of_entry(str(tmp_path), "list.json")


def test_formats(tmp_path):
    assert [format_of(f"a.{end}") for end in ("jsonl", "json", "parquet", "arrow", "TAR", "txt")] == [
        "jsonl", "json", "parquet", "parquet", "webdataset", "jsonl",
    ]  # fmt: skip
    assert format_of(str(tmp_path)) == "captions"
    assert format_of("a.tar", "jsonl") == "jsonl"


def test_a_mix_of_patterns(folder):
    for number in range(3):
        write_jsonl(folder / f"a-{number}.jsonl", [conversation(f"number {number}")] * 2)
    write_tar(folder / "a.tar", [("1.png", png("red")), ("1.txt", "one")])
    sources = {"a": {"data_paths": ["a-*.jsonl", "a.tar"], "prompt": "What?"}}
    config = data_config(folder, sources)
    catalog = build_catalog(config, make_template(config), config.data.dataset)
    assert [len(file.selected) for file in catalog.files] == [2, 2, 2, 1]
    assert catalog.request(6).format == "webdataset"
    assert catalog.request(6).options.prompt == "What?"


def test_a_config_with_a_pattern_of_nothing_is_refused_before_training(folder, write_yaml):
    config = data_config(folder, {"a": {"data_paths": ["none-*.jsonl"]}, "b": {"data_paths": ["none-{0..2}.jsonl"]}})
    with pytest.raises(ConfigError) as caught:
        load(write_yaml(to_yaml(config)), more_checks=[find_training_problems])
    assert f"there is no file {folder}/none-*.jsonl" in str(caught.value)
    assert "none-0.jsonl (and 2 more of this source)" in str(caught.value)
    config = data_config(folder, {"a": {"data_paths": ["a-{2..1}.jsonl"]}})
    with pytest.raises(ConfigError, match="the range"):
        load(write_yaml(to_yaml(config)), more_checks=[find_training_problems])


def test_patterns_of_nothing_may_be_left_out(folder):
    write_jsonl(folder / "a-1.jsonl", [conversation("hello")])
    sources = {"a": {"data_paths": ["a-*.jsonl", "b-*.jsonl"]}}
    config = data_config(folder, sources)
    with pytest.raises(DataError, match=r"b-\*.jsonl"):
        build_catalog(config, make_template(config), config.data.dataset)
    config = data_config(folder, sources, allow_missing=True)
    catalog = build_catalog(config, make_template(config), config.data.dataset)
    assert (len(catalog.files), catalog.missing) == (1, {"a": [f"{folder}/b-*.jsonl"]})


@pytest.mark.parametrize("name", ["a.tar.gz", "a.jsonl.gz", "a.csv", "a.zip"])
def test_packed_files_have_no_format(name):
    with pytest.raises(DataError, match="no format reads"):
        format_of(name)
    assert format_of(name, "jsonl") == "jsonl"
