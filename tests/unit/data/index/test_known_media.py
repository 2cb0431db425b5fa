"""Media files are opened once: another stage, source, frame rate or tokenizer opens none of them."""

from __future__ import annotations

import os
import shutil

import pytest

from longvita.data.index import build
from longvita.data.media import packet_scan
from longvita.data.mix.catalog import build_catalog, make_template
from longvita.data.quarantine import count_reasons
from tests.unit.data.format_material import write_tar
from tests.unit.data.index.test_index import BROKEN, GOOD
from tests.unit.data.material import conversation, data_config, write_jsonl
from tests.unit.data.media.films import h264
from tests.unit.data.media.test_facts_store import OLD

SAMPLES = [*GOOD, *(sample for samples in BROKEN.values() for sample in samples)]


@pytest.fixture
def mix(folder, own_media):
    """A data file, an archive, and their media, which were written long ago."""
    media = own_media()
    for path in [media, *media.rglob("*")]:
        os.utime(path, (OLD, OLD))
    write_jsonl(folder / "a.jsonl", SAMPLES)
    one = (media / "one.png").read_bytes()
    write_tar(
        folder / "b.tar", [(f"{n}.{end}", text) for n in range(3) for end, text in (("png", one), ("txt", "one"))]
    )
    os.utime(folder / "b.tar", (OLD, OLD))
    return folder


def catalog_of(folder, stage, sources=("web", "archive"), **data):
    """The catalog of a stage with its own output folder next to those of the others."""
    names = dict(zip(sources, ("a.jsonl", "b.tar")))
    config = data_config(folder, {source: {"data_paths": [path]} for source, path in names.items()}, **data)
    config = config.model_copy(update={"output": str(folder / "runs" / stage)})
    return build_catalog(config, make_template(config), config.data.dataset)


def contents(catalog):
    """What the samples of a catalog are, without the names of their sources."""
    requests = [catalog.request(sample) for sample in catalog.selected]
    usable = [(one.path, one.place, one.facts, one.length, one.num_tiles) for one in requests]
    return sorted(usable, key=str), [(one.path, one.line, one.reason, one.detail) for one in catalog.quarantined]


def intact(opened):
    """The opened media files that are no broken ones, which have no facts."""
    broken = ("zero.mp4", "text.mp4", "text.png", "audio.mp4", "empty")
    return [file for file in opened if not str(file).endswith(broken)]


class TestAnotherStage:
    def test_with_other_names_and_another_rate_has_the_same_index(self, mix, opened, monkeypatch):
        first = catalog_of(mix, "stage1")
        assert len(intact(opened)) >= 5
        opened.clear()
        monkeypatch.setattr(build, "index_part", lambda *_: pytest.fail("indexed again"))
        second = catalog_of(mix, "stage2", ("other", "tar"), max_fps=0.5, sequence_length=4096)
        assert opened == []
        assert {entry.source for entry in second.quarantined} == {"other"}
        monkeypatch.undo()
        shutil.rmtree(mix / "runs")
        alone = catalog_of(mix, "alone", ("other", "tar"), max_fps=0.5, sequence_length=4096)
        assert contents(second) == contents(alone)
        assert contents(first) != contents(second)

    def test_with_another_tokenizer_opens_no_media_file(self, mix, opened):
        first = catalog_of(mix, "stage1")
        shutil.copytree(mix / "tokenizer", mix / "renamed")
        text = (mix / "renamed" / "tokenizer.json").read_text()
        (mix / "renamed" / "tokenizer.json").write_text(
            text.replace('"add_prefix_space": false', '"add_prefix_space": true')
        )
        opened.clear()
        second = catalog_of(mix, "stage2", tokenizer=str(mix / "renamed"))
        assert intact(opened) == []
        assert contents(first) != contents(second)
        shutil.rmtree(mix / "runs")
        assert contents(catalog_of(mix, "alone", tokenizer=str(mix / "renamed"))) == contents(second)

    def test_of_a_file_with_the_same_media_opens_none_of_them(self, mix, opened):
        catalog_of(mix, "stage1")
        opened.clear()
        write_jsonl(mix / "a.jsonl", [*GOOD[::-1], *GOOD])
        again = catalog_of(mix, "stage2")
        assert opened == []
        assert len(again.selected) == 11

    def test_does_not_read_a_film_without_a_list_of_its_packets_again(self, mix, opened, monkeypatch):
        h264(mix / "media" / "film.ts")
        os.utime(mix / "media" / "film.ts", (OLD, OLD))
        write_jsonl(mix / "a.jsonl", [conversation("<video>?", videos=["film.ts"])])
        facts = catalog_of(mix, "stage1").files[0].index.facts(0)
        packet_scan._tables.clear()
        monkeypatch.setattr(packet_scan, "scan_packets", None)
        opened.clear()
        write_jsonl(mix / "a.jsonl", [conversation("<video>Well?", videos=["film.ts"])])
        assert catalog_of(mix, "stage2").files[0].index.facts(0) == facts
        assert opened == []


def test_a_folder_without_a_frame_at_a_rate_is_quarantined_at_this_rate_alone(mix):
    write_jsonl(mix / "a.jsonl", [conversation("<video>", videos=["clip.mp4"]), GOOD[3], GOOD[0]])
    catalogs = {rate: catalog_of(mix, "stage1", max_fps=rate) for rate in (0.05, 1.0)}
    (entry,) = catalogs[0.05].quarantined
    assert (entry.source, entry.line, entry.reason) == ("web", 2, "broken_video")
    assert entry.detail.startswith(
        "video 1 has no frame to sample at 0.05/s: it has 11 at 1.0/s; fix: raise data.max_fps"
    )
    assert catalogs[1.0].quarantined == []
    assert count_reasons(catalogs[0.05].quarantined) == {"broken_video": 1}


def test_a_media_file_that_was_replaced_is_read_again(mix):
    before = catalog_of(mix, "stage1").files[0].index.facts(1)
    shutil.copy(mix / "media" / "wide.jpg", mix / "media" / "one.png")
    write_jsonl(mix / "a.jsonl", [*SAMPLES, GOOD[0]])
    after = catalog_of(mix, "stage2").files[0].index.facts(1)
    assert (before.pictures[0].width, after.pictures[0].width) == (60, 120)
