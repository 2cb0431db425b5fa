"""A source that loses too many samples stops a run at its start, in training and held out."""

from __future__ import annotations

import pytest

from longvita.data.errors import DataError
from longvita.data.index.columns import QuarantinedEntries
from longvita.data.loader import LoaderRanks, build_loader
from longvita.training.validation import check_held_out
from tests.unit.data.material import conversation, data_config, write_jsonl


def write_source(folder, name, good, broken, missing=0):
    """A file of good samples, broken lines, and samples without their picture, in this order."""
    absent = [conversation("<image>?", images=[f"absent{number}.png"]) for number in range(missing)]
    write_jsonl(folder / name, [*[conversation("hello")] * good, *["{oops"] * broken, *absent])
    return {"data_paths": [name]}


def start(config, split="train"):
    build_loader(config, LoaderRanks(), split=split).close()


def refusal(config, **options):
    with pytest.raises(DataError) as error:
        start(config, **options)
    return str(error.value)


def test_the_message(folder):
    sources = {
        "poor": write_source(folder, "a.jsonl", 110, 7, 3),
        "good": write_source(folder, "b.jsonl", 100, 5),
        "none": write_source(folder, "c.jsonl", 0, 2),
    }
    text = refusal(data_config(folder, sources)).splitlines()
    broken = f"{folder}/a.jsonl:111: invalid_json: not JSON: "
    absent = f"{folder}/a.jsonl:118: missing_file: picture {folder}/media/absent0.png does not exist"
    assert text[0] == "too many samples are quarantined:"
    assert text[1] == (
        "source 'poor': 10 of its 120 samples (8.3%) are quarantined, max_quarantined is 0.05: "
        "invalid_json 7, missing_file 3"
    )
    assert text[2].startswith(f"  {broken}") and text[3] == f"  {absent}"
    assert text[4] == "source 'none': none of its 2 samples can be used: invalid_json 2"
    assert text[6].startswith("fix: repair the files (longvita data index CONFIG")
    assert "ratio: 0" in text[6] and len(text) == 7
    assert "'good'" not in "".join(text)


@pytest.mark.parametrize(
    "good, broken, limit, starts",
    [
        (95, 5, 0.05, True),
        (94, 6, 0.05, False),
        (94, 6, 0.06, True),
        (50, 49, 0.05, True),  # too few samples for a share
        (50, 50, 0.05, False),
        (50, 50, 1.0, True),
        (100, 1, 0.0, False),
        (100, 0, 0.0, True),
    ],
)
def test_the_share(folder, good, broken, limit, starts):
    source = write_source(folder, "a.jsonl", good, broken)
    config = data_config(folder, {"a": source}, max_quarantined=limit)
    if starts:
        start(config)
    else:
        assert f"{broken} of its {good + broken} samples" in refusal(config)


def test_the_limit_that_a_message_proposes_is_enough(folder):
    source = write_source(folder, "a.jsonl", 93, 7)
    assert "data.max_quarantined=0.07, or" in refusal(data_config(folder, {"a": source}))
    start(data_config(folder, {"a": source}, max_quarantined=0.07))


def test_a_source_may_have_a_limit_of_its_own(folder):
    sources = {"a": write_source(folder, "a.jsonl", 60, 60), "b": write_source(folder, "b.jsonl", 120, 6)}
    start(data_config(folder, {**sources, "a": {**sources["a"], "max_quarantined": 0.5}}))
    text = refusal(data_config(folder, {**sources, "b": {**sources["b"], "max_quarantined": 0}}, max_quarantined=0.5))
    assert "source 'b': 6 of its 126 samples (4.8%) are quarantined, max_quarantined is 0" in text
    assert "source 'a'" not in text


def test_samples_that_are_too_long_count(folder):
    write_jsonl(folder / "a.jsonl", [*[conversation("hello")] * 100, *[conversation("x" * 300)] * 9])
    assert "9 of its 109 samples (8.3%) are quarantined" in refusal(
        data_config(folder, {"a": {"data_paths": ["a.jsonl"]}})
    )
    start(data_config(folder, {"a": {"data_paths": ["a.jsonl"]}}, sequence_length=512))


def test_files_of_another_format_count_as_files(folder):
    """One of three files is a pointer: a third of the source, and one entry among 301."""
    for name in "ab":
        write_source(folder, f"{name}.jsonl", 150, 0)
    (folder / "c.jsonl").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    source = {"data_paths": ["a.jsonl", "b.jsonl", "c.jsonl"]}
    text = refusal(data_config(folder, {"web": source}))
    assert "1 of its 301 samples (0.3%) are quarantined, max_quarantined is 0.05; 1 of its 3 files" in text
    assert f"{folder}/c.jsonl:1: wrong_format: " in text and "git lfs pull" in text
    assert "data.max_quarantined=0.34, or" in text
    start(data_config(folder, {"web": source}, max_quarantined=0.34))


def test_held_out_sources_are_checked_before_the_first_step(folder):
    sources = {"a": write_source(folder, "a.jsonl", 9, 0)}
    held_out = {"kept": write_source(folder, "b.jsonl", 110, 1), "web": write_source(folder, "c.jsonl", 110, 10)}
    config = data_config(folder, sources, validation=held_out)
    start(config)
    with pytest.raises(DataError, match="source 'web': 10 of its 120 samples"):
        check_held_out(config)
    assert "source 'web': 10 of its 120" in refusal(config, split="validation/web")
    start(config, split="validation/kept")


def test_all_ranks_say_the_same(folder):
    config = data_config(folder, {"a": write_source(folder, "a.jsonl", 100, 20)})
    texts = set()
    for rank in range(2):
        with pytest.raises(DataError) as error:
            build_loader(config, LoaderRanks(dp_rank=rank, dp_size=2))
        texts.add(str(error.value))
    assert len(texts) == 1


def test_entries_of_a_good_source_are_not_read(folder, monkeypatch):
    config = data_config(folder, {"a": write_source(folder, "a.jsonl", 100, 3)})
    start(config)
    monkeypatch.setattr(QuarantinedEntries, "__getitem__", lambda *_: pytest.fail("entries are read"))
    build_loader(config, LoaderRanks(dp_rank=1, dp_size=2)).close()
