from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from longvita.data.errors import DataError, Reason
from longvita.data.index import build, editions, process_pool
from longvita.data.index.build import IndexSettings
from longvita.data.index.header_probe import ProbeLimits
from longvita.data.index.process_pool import IndexProcessPool
from longvita.data.index.store import IndexJob, load_index
from longvita.data.media import video
from longvita.data.media.item import MediaSettings
from longvita.data.media.pictures import upright
from longvita.data.mix.catalog import build_catalog, make_template
from longvita.data.mix.measure import measure
from longvita.data.quarantine import QuarantinedSample, QuarantineFile, count_reasons, read_quarantine
from tests.unit.data.material import conversation, data_config, write_jsonl

SETTINGS = MediaSettings(image_size=28, max_num_tiles=4, max_num_frames=8)

GOOD = [
    conversation("hello"),
    conversation("<image>?", images=["one.png"]),
    conversation("<video>then<image>", images=["wide.jpg"], videos=["clip.mp4"]),
    conversation("<video>?", videos=["frames"]),
]
BROKEN = {
    Reason.INVALID_JSON: ["{oops", '{"messages": [', "nonsense"],
    Reason.INVALID_SAMPLE: ["[]", {"messages": []}, {"messages": [{"role": "robot", "content": "x"}]}],
    Reason.EMPTY_TURN: [conversation(""), conversation("x", "  ")],
    Reason.NO_ANSWER: [{"messages": [{"role": "user", "content": "x"}]}],
    Reason.MARK_COUNT: [conversation("<image>", images=["one.png"] * 2), conversation("<video>", images=["one.png"])],
    Reason.MISSING_FILE: [
        conversation("<image>", images=["none.png"]),
        conversation("<video>", videos=["none.mp4"]),
        conversation("<video>", videos=["nowhere"]),
    ],
    Reason.OUTSIDE_MEDIA_ROOT: [
        conversation("<image>", images=["../one.png"]),
        conversation("<image>", images=["/etc/hostname"]),
        conversation("<video>", videos=["frames/../../clip.mp4"]),
        conversation("<image>", images=["s3://bucket/one.png"]),
    ],
    Reason.BROKEN_PICTURE: [conversation("<image>", images=["text.png"]), conversation("<image>", images=["frames"])],
    Reason.BROKEN_VIDEO: [
        conversation("<video>", videos=[name]) for name in ("zero.mp4", "text.mp4", "audio.mp4", "empty", "one.png/x")
    ],
}
# What is below a file does not exist.
BROKEN[Reason.MISSING_FILE].append(BROKEN[Reason.BROKEN_VIDEO].pop())


def settings_of(folder):
    return IndexSettings(str(folder / "media"))


def job_of(folder, template, processes=0, **options):
    return IndexJob(IndexProcessPool(template, processes), settings_of(folder), folder / "cache", **options)


def index_of(path, folder, template):
    """Built from scratch, whatever the file of this name held before."""
    shutil.rmtree(folder / "cache", ignore_errors=True)
    return load_index(path, job_of(folder, template))


HARMFUL_HEADERS = """
import os, sys, time
here = sys.path.pop(0)
del sys.modules["av"]
import av
real = av.open
def open(file, *arguments, **options):
    if "crash" in str(file):
        os._exit(9)
    if "hang" in str(file):
        time.sleep(1000)
    if "greedy" in str(file):
        bytearray(1 << 30)
    return real(file, *arguments, **options)
av.open = open
sys.path.insert(0, here)
"""
"""A module found in place of PyAV, which behaves as PyAV except for files of some names."""


def install_harmful_headers(folder, monkeypatch, crashing="crash"):
    """For the processes that start after this call."""
    folder.mkdir()
    (folder / "av.py").write_text(HARMFUL_HEADERS.replace("crash", crashing))
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])


class matching:
    """Equal to any text that holds this one."""

    def __init__(self, text):
        self.text = text

    def __eq__(self, other):
        return self.text in other


def exit_at_once(*_arguments):
    os._exit(9)


OPEN_MANY = """
import resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
from longvita.data.index.build import IndexSettings
from longvita.data.index.process_pool import IndexProcessPool
from longvita.data.index.store import IndexJob, load_index
from longvita.data.chat_template import ChatTemplate
from longvita.data.tokenizer import LongVITATokenizer
folder, tokenizer = map(Path, sys.argv[1:])
processes = IndexProcessPool(ChatTemplate(LongVITATokenizer.from_json(tokenizer.read_text()), 1), 0)
job = IndexJob(processes, IndexSettings(str(folder / "media")), folder / "cache")
indexes = [load_index(folder / f"{number}.jsonl", job) for number in range(40)]
print(sum(map(len, indexes)), sum(len(index.quarantined) for index in indexes))
"""

COUNT_SAMPLES = """
import sys
from pathlib import Path
from longvita.data.index.build import IndexSettings
from longvita.data.index.process_pool import IndexProcessPool
from longvita.data.index.store import IndexJob, load_index
from longvita.data.chat_template import ChatTemplate
from longvita.data.tokenizer import LongVITATokenizer
path, tokenizer, media, cache = sys.argv[1:]
template = ChatTemplate(LongVITATokenizer.from_json(Path(tokenizer).read_text()), 1)
print(len(load_index(path, IndexJob(IndexProcessPool(template, 0), IndexSettings(media), Path(cache)))))
"""


def test_places_lengths_and_headers(folder, template):
    path = write_jsonl(folder / "a.jsonl", GOOD)
    index = index_of(path, folder, template)
    assert len(index) == 4
    assert len(index.quarantined) == 0
    content = path.read_bytes()
    for number, sample in enumerate(GOOD):
        place = index.place(number)
        assert json.loads(content[place.offset : place.offset + place.size]) == sample
    facts = index.facts(2)
    assert [(picture.width, picture.height) for picture in facts.pictures] == [(120, 40)]
    assert facts.videos == (video.VideoFacts(40, 4.0),)
    assert index.facts(3).videos == (video.VideoFacts(11, 1.0, is_folder=True),)


@pytest.mark.parametrize("reason", BROKEN)
def test_quarantined_samples(folder, template, reason):
    path = write_jsonl(folder / "a.jsonl", [GOOD[0], *BROKEN[reason], GOOD[1]])
    index = index_of(path, folder, template)
    assert [entry.reason for entry in index.quarantined] == [reason] * len(BROKEN[reason])
    assert [entry.line for entry in index.quarantined] == list(range(2, 2 + len(BROKEN[reason])))
    assert index.rows["line"].tolist() == [1, 2 + len(BROKEN[reason])]


def test_blank_lines_and_a_missing_last_newline(folder, template):
    path = folder / "a.jsonl"
    path.write_text("\n" + json.dumps(GOOD[0]) + "\n  \n" + json.dumps(GOOD[1]))
    index = index_of(path, folder, template)
    assert index.rows["line"].tolist() == [2, 4]
    assert len(index.quarantined) == 0


def test_nothing_is_decoded(folder, template, monkeypatch):
    def refuse(*_arguments, **_options):
        raise AssertionError("decoded")

    monkeypatch.setattr(upright, "_load", refuse)
    monkeypatch.setattr(video, "read_with_pyav", refuse)
    monkeypatch.setattr(video, "_read_with_decord", refuse)
    index = index_of(write_jsonl(folder / "a.jsonl", GOOD), folder, template)
    assert len(index) == 4


@pytest.fixture
def indexed_parts(monkeypatch):
    """The parts of data files that are indexed during a test."""
    parts, real = [], build.index_part
    monkeypatch.setattr(build, "index_part", lambda path, part, *rest: parts.append(part) or real(path, part, *rest))
    return parts


def assert_equal(index, other):
    np.testing.assert_array_equal(index.rows, other.rows)
    assert [index.facts(number) for number in range(len(index))] == [other.facts(n) for n in range(len(other))]
    assert list(index.quarantined) == list(other.quarantined)


class TestCache:
    def test_is_used_until_something_changes(self, folder, template, indexed_parts):
        path = write_jsonl(folder / "a.jsonl", [*GOOD, "{oops"])
        first = load_index(path, job_of(folder, template))
        indexed_parts.clear()
        assert_equal(load_index(path, job_of(folder, template)), first)
        assert indexed_parts == []
        other = IndexSettings(str(folder / "media"), folder_fps=2.0)
        load_index(path, IndexJob(IndexProcessPool(template, 0), other, folder / "cache"))
        write_jsonl(path, GOOD)
        assert len(load_index(path, job_of(folder, template)).quarantined) == 0
        assert len(indexed_parts) == 2

    def test_is_mapped_and_small(self, folder, template, monkeypatch):
        index = index_of(write_jsonl(folder / "a.jsonl", GOOD * 5), folder, template)
        monkeypatch.setattr(editions, "MIN_MAPPED_BYTES", 0)
        mapped = load_index(folder / "a.jsonl", job_of(folder, template))
        assert_equal(mapped, index)
        for column in (mapped.rows, mapped.media, mapped.rates):
            assert isinstance(column, np.memmap) and not column.flags.writeable
        assert index.rows.itemsize + index.media.itemsize * len(index.media) / len(index) <= 48

    @pytest.mark.parametrize("processes", [0, 1, 2])
    def test_of_many_parts_is_that_of_one(self, folder, template, processes):
        samples = [*GOOD, "{oops", "", *GOOD, conversation(""), *GOOD * 3]
        path = write_jsonl(folder / "a.jsonl", samples)
        whole = index_of(path, folder, template)
        shutil.rmtree(folder / "cache")
        assert_equal(load_index(path, job_of(folder, template, processes=processes, part_bytes=200)), whole)

    def test_of_a_grown_file_is_built_for_its_end_alone(self, folder, template, indexed_parts, caplog):
        path = write_jsonl(folder / "a.jsonl", GOOD * 5)
        load_index(path, job_of(folder, template, part_bytes=400))
        before = len(indexed_parts)
        indexed_parts.clear()
        write_jsonl(path, [*GOOD * 5, conversation("more"), "{oops"])
        grown = load_index(path, job_of(folder, template, part_bytes=400))
        assert 1 <= len(indexed_parts) < before
        assert "grew since it was indexed" in caplog.text
        assert_equal(grown, index_of(path, folder, template))

    def test_of_a_file_changed_in_its_middle(self, folder, template, indexed_parts, caplog):
        samples = [conversation(f"number {number:03}") for number in range(40)]
        path = write_jsonl(folder / "a.jsonl", samples)
        load_index(path, job_of(folder, template, part_bytes=400))
        indexed_parts.clear()
        samples[20] = conversation("numbers 20")
        write_jsonl(path, samples)
        changed = load_index(path, job_of(folder, template, part_bytes=400))
        assert len(indexed_parts) == 1
        assert "changed since it was indexed: 1 of" in caplog.text
        assert_equal(changed, index_of(path, folder, template))

    def test_of_a_file_of_one_part_that_changed_or_was_touched(self, folder, template, indexed_parts, caplog):
        path, job = write_jsonl(folder / "a.jsonl", GOOD * 5), job_of(folder, template)
        load_index(path, job)
        os.utime(path, (0, 0))
        load_index(path, job)
        assert len(indexed_parts) == 1
        assert caplog.text == ""
        write_jsonl(path, GOOD * 3)
        load_index(path, job)
        assert "changed since it was indexed: 1 of 1" in caplog.text

    @pytest.mark.parametrize("name", ["rows-1.npy", "media-1.npy", "quarantined-1.jsonl", "meta.json"])
    @pytest.mark.parametrize("damage", ["cut", "empty", "gone"])
    def test_that_is_damaged_is_rebuilt(self, folder, template, name, damage):
        path, job = write_jsonl(folder / "a.jsonl", [*GOOD, "{oops"]), job_of(folder, template)
        whole = load_index(path, job)
        rows, broken = whole.rows.copy(), list(whole.quarantined)
        file = job.folder(str(path)) / name
        if damage == "gone":
            file.unlink()
        else:
            file.write_bytes(file.read_bytes()[:-20] if damage == "cut" else b"")
        again = load_index(path, job)
        np.testing.assert_array_equal(again.rows, rows)
        assert list(again.quarantined) == broken
        assert_equal(load_index(path, job), again)

    @pytest.mark.parametrize("content", [b"", b"PK cut"])
    def test_a_damaged_draft_is_rebuilt(self, folder, template, content):
        path, job = write_jsonl(folder / "a.jsonl", GOOD), job_of(folder, template)
        (part,) = settings_of(folder).make_format().parts(str(path), job.part_bytes)
        draft = build.part_file(job.folder(str(path)) / "parts", part)
        draft.parent.mkdir(parents=True)
        draft.write_bytes(content)
        assert len(load_index(path, job)) == len(GOOD)

    def test_where_the_file_system_has_no_locks(self, folder, template, monkeypatch):
        """Another process at the same index loses neither its mapped columns nor its drafts."""

        def refuse(*_arguments):
            raise OSError("no locks")

        monkeypatch.setattr(editions.fcntl, "flock", refuse)
        path, job = write_jsonl(folder / "a.jsonl", GOOD), job_of(folder, template)
        mapped = load_index(path, job)
        before, inner = mapped.rows.copy(), job.folder(str(path))
        (inner / "parts").mkdir()
        (inner / editions.META).unlink()  # As if both had started at the same time.
        assert_equal(load_index(path, job), mapped)
        np.testing.assert_array_equal(mapped.rows, before)
        assert (inner / "parts").is_dir()
        assert [file.name for file in inner.iterdir() if file.name.startswith(("parts.", "."))] == []

    @pytest.mark.parametrize("processes", [1, 3])
    def test_a_header_that_ends_the_process_costs_one_sample(self, folder, template, own_media, monkeypatch, processes):
        install_harmful_headers(folder / "code", monkeypatch)
        media = own_media()
        samples = [conversation(f"<video>{n}", videos=["clip.mp4"]) for n in range(8)]
        for number, name in ((1, "greedy.mp4"), (3, "crash1.mp4"), (4, "hang.mp4"), (6, "crash2.mp4")):
            shutil.copy(media / "clip.mp4", media / name)
            samples[number] = conversation("<video>?", videos=[name])
        path = write_jsonl(folder / "a.jsonl", samples)
        limits = ProbeLimits(seconds=0.5, memory_bytes=512 << 20)
        with IndexProcessPool(template, processes, limits) as own:
            index = load_index(path, IndexJob(own, settings_of(folder), folder / "cache", part_bytes=300))
        assert {entry.line: entry.detail for entry in index.quarantined} == {
            2: matching("more memory than data.decode_memory_bytes"),
            **dict.fromkeys((4, 5, 7), matching("the process that opened its headers ended or took too long, 2 times")),
        }
        assert {entry.reason for entry in index.quarantined} == {Reason.BROKEN_VIDEO}
        assert len(index) == 4
        assert list((folder / "cache").rglob("*.crashes")) == []

    def test_processes_serve_one_file_after_the_other(self, folder, template):
        paths = [write_jsonl(folder / f"{name}.jsonl", GOOD * 5) for name in "abc"]
        with IndexProcessPool(template, 1) as own:
            jobs = [IndexJob(own, settings_of(folder), folder / "cache") for _ in paths]
            pools = []
            for path, job in zip(paths, jobs):
                assert len(load_index(path, job)) == 20
                pools.append(own._pool)
        assert pools[0] is pools[1] is pools[2] is not None

    def test_of_more_files_than_may_be_open_at_first(self, folder, template):
        (folder / "tokenizer.txt").write_text(template.tokenizer.to_json())
        for number in range(40):
            write_jsonl(folder / f"{number}.jsonl", [*GOOD, "{oops"])
        command = [sys.executable, "-c", OPEN_MANY, folder, folder / "tokenizer.txt"]
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.stdout.split() == ["160", "40"], result.stderr

    def test_as_many_processes_as_cores(self, template, monkeypatch):
        """Its share of them where the other ranks of the machine index too."""
        monkeypatch.setattr(process_pool, "available_cores", lambda: 16)
        monkeypatch.setattr(process_pool, "processes_on_this_machine", lambda: 5)
        sizes = [IndexProcessPool(template, number).size(alone) for number in (None, 3) for alone in (True, False)]
        assert sizes == [16, 3, 3, 3]

    def test_processes_that_end_for_another_reason(self, folder, template, monkeypatch):
        path = write_jsonl(folder / "a.jsonl", GOOD * 5)
        monkeypatch.setattr(process_pool, "_index", exit_at_once)
        with pytest.raises(DataError, match="end again and again"):
            load_index(path, job_of(folder, template, processes=2, part_bytes=400))

    def test_resumes_after_an_interrupt(self, folder, template, monkeypatch, indexed_parts):
        path = write_jsonl(folder / "a.jsonl", GOOD * 5)
        real, calls = build.index_part, []

        def fail_at_the_third(*arguments):
            calls.append(1)
            if len(calls) == 3:
                raise KeyboardInterrupt
            return real(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(build, "index_part", fail_at_the_third)
            with pytest.raises(KeyboardInterrupt):
                load_index(path, job_of(folder, template, part_bytes=400))
        indexed_parts.clear()
        index = load_index(path, job_of(folder, template, part_bytes=400))
        whole = len(settings_of(folder).make_format().parts(str(path), 400))
        assert len(indexed_parts) == whole - 2
        assert_equal(index, index_of(path, folder, template))

    def test_processes_that_load_at_once_get_one_index(self, folder, template):
        path = write_jsonl(folder / "a.jsonl", GOOD * 5)
        (folder / "tokenizer.txt").write_text(template.tokenizer.to_json())
        command = [
            sys.executable,
            "-c",
            COUNT_SAMPLES,
            path,
            folder / "tokenizer.txt",
            folder / "media",
            folder / "cache",
        ]
        processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        assert [process.communicate(timeout=120)[0].strip() for process in processes] == ["20", "20"]
        assert len(list((folder / "cache").glob("*/rows-*.npy"))) == 1

    def test_a_missing_data_file(self, folder, template):
        with pytest.raises(DataError, match=r"none.jsonl does not exist; see data.data_root"):
            load_index(folder / "none.jsonl", job_of(folder, template))


class TestMeasure:
    def measured(self, folder, template, samples, sequence_length, settings=SETTINGS):
        path = write_jsonl(folder / "a.jsonl", samples)
        index = index_of(path, folder, template)
        return measure(index, template, settings, sequence_length)

    def test_lengths_are_those_of_the_encoded_samples(self, folder, template):
        measured = self.measured(folder, template, GOOD, 4096)
        assert measured.tiles.tolist() == [0, 5, 4 + 8, 8]
        assert measured.usable.tolist() == [0, 1, 2, 3]
        assert measured.frame_limits.tolist() == [8] * 4

    def test_a_video_is_cut_to_the_frames_that_fit(self, folder, template):
        whole = self.measured(folder, template, GOOD, 4096)
        length = int(whole.lengths[3])
        cut = self.measured(folder, template, GOOD, length - 4)
        assert cut.frame_limits.tolist() == [8, 8, 8 if whole.lengths[2] <= length - 4 else cut.frame_limits[2], 6]
        assert cut.lengths[3] == length - 2 * template.tokens_per_frame
        assert cut.tiles[3] == 6

    def test_too_long_even_at_one_frame(self, folder, template):
        samples = [conversation("x" * 90), conversation("<video>" + "x" * 90, videos=["clip.mp4"]), GOOD[0]]
        measured = self.measured(folder, template, samples, 100)
        assert measured.usable.tolist() == [2]
        assert [entry.reason for entry in measured.unusable] == [Reason.TOO_LONG] * 2
        assert [entry.line for entry in measured.unusable] == [1, 2]
        assert "do not fit data.sequence_length 100" in measured.unusable[0].detail
        assert measured.unusable[1].detail.endswith("even at one frame per video")


class TestCatalog:
    def test_ratio_num_and_sources(self, folder):
        write_jsonl(folder / "a.jsonl", [conversation(f"a{number}") for number in range(10)])
        write_jsonl(folder / "b.jsonl", [conversation(f"b{number}") for number in range(4)])
        sources = {
            "a": {"data_paths": ["a.jsonl"], "ratio": 0.5},
            "b": {"data_paths": ["b.jsonl"], "ratio": 2.0},
            "off": {"data_paths": ["none.jsonl"], "ratio": 0.0},
        }
        config = data_config(folder, sources)
        catalog = build_catalog(config, make_template(config), config.data.dataset)
        names = [catalog.request(sample).source for sample in catalog.selected]
        assert names == ["a"] * 5 + ["b"] * 8
        request = catalog.request(int(catalog.selected[-1]))
        assert (request.source, request.path) == ("b", str(folder / "b.jsonl"))
        assert request.length == catalog.lengths[catalog.selected[-1]]

    def test_an_empty_mix_is_an_error(self, folder):
        write_jsonl(folder / "a.jsonl", ["{oops", conversation("x" * 300)])
        config = data_config(folder, {"a": {"data_paths": ["a.jsonl"]}})
        with pytest.raises(DataError, match=r"no sample to train on in a: 0 are usable.*invalid_json.*too_long"):
            build_catalog(config, make_template(config), config.data.dataset)

    def test_a_vocabulary_that_is_too_small(self, folder):
        config = data_config(folder, {})
        language = config.model.language.model_copy(update={"vocab_size": 200})
        model = config.model.model_copy(update={"language": language})
        with pytest.raises(DataError, match=r"model.language.vocab_size is 200"):
            make_template(config.model_copy(update={"model": model}))


class TestQuarantineFile:
    ENTRIES = [
        QuarantinedSample("a", "a.jsonl", 3, Reason.EMPTY_TURN, "turn 0 has\u2028no text"),
        QuarantinedSample("a", "a.jsonl", 4, Reason.BROKEN_VIDEO, "图 cannot be decoded\nat all"),
    ]

    def test_each_entry_once_over_restarts(self, tmp_path):
        path = tmp_path / "run" / "quarantine.jsonl"
        assert QuarantineFile(path).add(self.ENTRIES[:1]) == 1
        again = QuarantineFile(path)
        assert again.add(self.ENTRIES) == 1
        assert again.add(self.ENTRIES) == 0
        assert read_quarantine(path) == self.ENTRIES
        assert count_reasons(read_quarantine(path)) == {"empty_turn": 1, "broken_video": 1}

    def test_a_last_line_cut_by_a_crash(self, tmp_path):
        path = tmp_path / "quarantine.jsonl"
        QuarantineFile(path).add(self.ENTRIES)
        path.write_bytes(path.read_bytes()[:-20])
        assert read_quarantine(path) == self.ENTRIES[:1]
        assert QuarantineFile(path).add(self.ENTRIES) == 1
        assert read_quarantine(path)[-1] == self.ENTRIES[1]

    def test_no_file(self, tmp_path):
        assert read_quarantine(tmp_path / "none.jsonl") == []
