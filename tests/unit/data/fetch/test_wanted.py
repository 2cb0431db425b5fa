from __future__ import annotations

import json

import pytest

from longvita.config import load
from longvita.data.fetch.wanted import WantedFile, check_inside, choose_sources, matching, wanted_files
from tests.conftest import REPOSITORY


def test_names_of_archives():
    archives = [
        "a.zip",
        "a.tar",
        "b.tar.gz",
        "b.TGZ",
        "c.tar.gz.aa",
        "d.z01",
        "e.zip.001",
        "f.tar.part-03",
        "g.parquet",
    ]
    others = ["a.json", "zip", "b.tar.json", "README.md", "tar/notes.txt", "c.jsonl", "d.mp4"]
    everything = WantedFile("s", "o/n", "", "o/n")
    assert matching(everything, [*archives, *others]) == {name: f"o/n/{name}" for name in archives}


def test_plain_paths_pass():
    assert check_inside("./a//b..c/d.jsonl", "path") == "a/b..c/d.jsonl"


@pytest.mark.parametrize("stage", [1, 2, 3, 4])
def test_every_file_of_a_shipped_mix_is_on_the_hub_below_its_own_path(stage):
    published = json.loads((REPOSITORY / "tests/golden/data_mix.json").read_text()).values()
    used = [path for facts in published if facts["ratio"][stage - 1] > 0 for path in facts["data_paths"]]
    shipped = load(REPOSITORY / f"configs/data/stage{stage}.yaml")
    wanted = wanted_files(shipped, choose_sources(shipped, []), media=False)
    assert [item.target for item in wanted] == used
    for item in wanted:
        processed = ("VITA-MLLM/Long-VITA-Training-Data", f"jsonl/{item.target}")
        comic = ("VITA-MLLM/Comic-9K", "summary.jsonl")
        assert (item.repository, item.path) == (comic if item.source == "Comic-9K" else processed)
