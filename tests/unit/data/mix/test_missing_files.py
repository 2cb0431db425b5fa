from __future__ import annotations

import logging

import pytest

from longvita.config import ConfigError, load
from longvita.data.errors import DataError
from longvita.data.loader import LoaderRanks, build_loader
from longvita.data.mix.catalog import build_catalog, make_template
from longvita.data.mix.missing_files import count_missing, find_training_problems
from tests.unit.data.material import conversation, data_config, write_jsonl

SOURCES = {
    "whole": {"data_paths": ["a.jsonl"]},
    "half": {"data_paths": ["b.jsonl", "gone.jsonl"]},
    "lost": {"data_paths": ["x/one.jsonl", "x/two.jsonl"]},
    "off": {"data_paths": ["off.jsonl"], "ratio": 0.0},
}


@pytest.fixture
def data(folder):
    write_jsonl(folder / "a.jsonl", [conversation(f"a{number}") for number in range(6)])
    write_jsonl(folder / "b.jsonl", [conversation(f"b{number}") for number in range(4)])
    return folder


def catalog_of(config):
    return build_catalog(config, make_template(config), config.data.dataset)


def test_one_error_names_every_file_by_source_and_the_ways_out(data):
    with pytest.raises(DataError) as error:
        catalog_of(data_config(data, SOURCES))
    lines = str(error.value).splitlines()
    assert lines[:6] == [
        "3 data files of 2 sources are missing:",
        "  half:",
        f"    {data}/gone.jsonl",
        "  lost:",
        f"    {data}/x/one.jsonl",
        f"    {data}/x/two.jsonl",
    ]
    assert "longvita data fetch" in lines[6] and "--allow-missing" in lines[6] and "data.data_root" in lines[6]


def test_nothing_is_indexed_before_the_error(data):
    config = data_config(data, SOURCES)
    with pytest.raises(DataError):
        catalog_of(config)
    assert not (data / "run" / "index").exists()


def test_allow_missing_leaves_them_out_and_counts_them(data, caplog):
    config = data_config(data, SOURCES, allow_missing=True)
    catalog = catalog_of(config)
    assert [file.path for file in catalog.files] == [f"{data}/a.jsonl", f"{data}/b.jsonl"]
    assert catalog.missing == {
        "half": [f"{data}/gone.jsonl"],
        "lost": [f"{data}/x/one.jsonl", f"{data}/x/two.jsonl"],
    }
    with caplog.at_level(logging.WARNING):
        loader = build_loader(config, LoaderRanks())
    assert count_missing(loader.catalog.missing) == 3
    assert sum(file.num_samples for file in loader.catalog.files) == 10
    (warning,) = [record.getMessage() for record in caplog.records if "allow_missing" in record.getMessage()]
    assert all(name in warning for name in ("gone.jsonl", "one.jsonl", "two.jsonl"))


def test_one_rank_of_all_warns(data, caplog):
    config = data_config(data, SOURCES, allow_missing=True)
    with caplog.at_level(logging.WARNING):
        build_loader(config, LoaderRanks(dp_rank=1, dp_size=2))
    assert not caplog.records


def test_a_complete_mix_has_no_missing_files(data, caplog):
    config = data_config(data, {"whole": SOURCES["whole"], "off": SOURCES["off"]})
    assert catalog_of(config).missing == {}
    assert build_loader(config, LoaderRanks()).catalog.missing == {}
    assert not caplog.records


def test_a_mix_without_any_file_is_an_error_even_so(folder):
    config = data_config(folder, {"lost": SOURCES["lost"], "off": SOURCES["off"]}, allow_missing=True)
    with pytest.raises(DataError, match=r"2 data files of 1 source are missing") as error:
        catalog_of(config)
    assert "--allow-missing" not in str(error.value)


def test_a_folder_in_a_file_s_place_is_missing(folder):
    (folder / "a.jsonl").mkdir()
    with pytest.raises(DataError, match=r"1 data file of 1 source is missing:\n  whole:\n.*a\.jsonl"):
        catalog_of(data_config(folder, {"whole": SOURCES["whole"]}))


class TestConfigForTraining:
    """What `longvita train CONFIG` is refused for, before any process starts."""

    def loaded(self, data, write_yaml, *overrides):
        path = write_yaml(
            "data: {dataset: {half: {data_paths: [b.jsonl, gone.jsonl]}, lost: {data_paths: [x.jsonl]}}}", "run.yaml"
        )
        common = [f"data.data_root={data}", f"data.tokenizer={data / 'tokenizer'}"]
        return load(path, [*common, *overrides], more_checks=[find_training_problems])

    def test_every_source_at_once(self, data, write_yaml):
        with pytest.raises(ConfigError) as error:
            self.loaded(data, write_yaml)
        text = str(error.value)
        assert "data.dataset.half.data_paths: there is no file" in text and "gone.jsonl" in text
        assert "data.dataset.lost.data_paths: there is no file" in text
        assert "longvita data fetch" in text and "data.allow_missing=true" in text

    def test_allow_missing(self, data, write_yaml):
        assert self.loaded(data, write_yaml, "data.allow_missing=true").data.allow_missing

    def test_all_of_a_mix_missing(self, data, write_yaml):
        with pytest.raises(ConfigError, match="lost"):
            self.loaded(data, write_yaml, "data.allow_missing=true", "data.dataset.half.ratio=0")

    def test_each_held_out_source_is_a_mix_of_its_own(self, data, write_yaml):
        held_out = "data.validation={kept: {data_paths: [a.jsonl]}, lost: {data_paths: [none.jsonl]}}"
        with pytest.raises(ConfigError, match=r"data\.validation\.lost"):
            self.loaded(data, write_yaml, "data.allow_missing=true", held_out)
