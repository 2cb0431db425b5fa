"""The shipped mixes hold what was published, with the place and licence of each source."""

from __future__ import annotations

import json

import pytest

from longvita.config import load
from tests.conftest import REPOSITORY

PUBLISHED = json.loads((REPOSITORY / "tests/golden/data_mix.json").read_text())
UNLIMITED = 999999999
STAGES = (1, 2, 3, 4)


def sources_of(stage):
    return load(REPOSITORY / f"configs/data/stage{stage}.yaml").data.dataset


@pytest.mark.parametrize("stage", STAGES)
def test_ratio_num_and_files_are_the_published_ones(stage):
    shipped = {name: (s.ratio, s.num, s.data_paths) for name, s in sources_of(stage).items()}
    published = {
        name: (facts["ratio"][stage - 1], facts["num"] or UNLIMITED, facts["data_paths"])
        for name, facts in PUBLISHED.items()
    }
    assert shipped == published


@pytest.mark.parametrize("stage", STAGES)
def test_every_source_has_a_place_and_a_licence(stage):
    for name, source in sources_of(stage).items():
        assert source.found_at, name
        assert source.licence, name


def test_each_file_is_named_after_a_place_where_its_source_is_found():
    for name, source in sources_of(4).items():
        if name == "Movie":  # its file is named after MovieNet, which is not on the Hub
            continue
        assert {"/".join(path.split("/")[:2]) for path in source.data_paths} <= set(source.found_at), name
