"""`longvita data retry`: fixed samples leave the quarantine file, and the next run uses them."""

from __future__ import annotations

import json
import shutil

import pytest
from typer.testing import CliRunner

from longvita.cli import app
from longvita.config import load
from longvita.data.audit import retry_quarantined
from longvita.data.errors import DataError
from longvita.data.formats import make_format
from longvita.data.formats.record import NO_OPTIONS
from longvita.data.index import build
from longvita.data.index.store import IndexJob
from longvita.data.loader import LoaderRanks, build_loader
from longvita.data.quarantine import FILE_NAME, QuarantinedSample, QuarantineFile, read_quarantine
from tests.unit.commands.data.test_index import write_config
from tests.unit.data.index.test_index import install_harmful_headers
from tests.unit.data.material import conversation, sequences_per_epoch, write_jsonl

GOOD = [conversation(f"good {number}") for number in range(4)]
BROKEN = [
    conversation("<image>?", images=["late.png"]),
    conversation("<video>?", videos=["cut.mp4"]),
    "{oops",
    conversation("x" * 300),
]


@pytest.fixture
def media(own_media):
    return own_media()


@pytest.fixture
def config(folder, media):
    """The config file of a run of one epoch, which set four samples aside."""
    write_jsonl(folder / "a.jsonl", [*GOOD[:2], *BROKEN, *GOOD[2:]])
    path = write_config(folder, {"a": {"data_paths": ["a.jsonl"]}})
    assert taken(path) == 4
    assert quarantined(folder) == {3: "missing_file", 4: "broken_video", 5: "invalid_json", 6: "too_long"}
    return path


def taken(config):
    """Documents of an epoch of a new run."""
    loader = build_loader(load(config), LoaderRanks())
    batches = [next(loader) for _ in range(sequences_per_epoch(loader))]
    return sum(source == "a" for batch in batches for source in batch.document_sources)


def quarantined(folder):
    return {entry.line: str(entry.reason) for entry in read_quarantine(folder / "run" / FILE_NAME)}


def run(folder, config, *overrides):
    return CliRunner().invoke(app, ["data", "retry", str(folder / "run" / FILE_NAME), str(config), *overrides])


def test_nothing_was_fixed(folder, config):
    before = (folder / "run" / FILE_NAME).read_text()
    result = run(folder, config)
    assert result.exit_code == 1, result.exception
    assert sorted((folder / "run" / FILE_NAME).read_text().splitlines()) == sorted(before.splitlines())
    assert "0 samples can be used now, 4 are left" in result.stdout
    assert "a.jsonl:4: broken_video: " in result.stdout


def test_fixed_samples_are_used_by_the_next_run(folder, config, media):
    shutil.copy(media / "one.png", media / "late.png")
    shutil.copy(media / "clip.mp4", media / "cut.mp4")
    result = run(folder, config)
    assert result.exit_code == 1
    assert quarantined(folder) == {5: "invalid_json", 6: "too_long"}
    assert "a.jsonl:3: can be used now (missing_file before)" in result.stdout
    assert "2 samples can be used now, 2 are left: invalid_json 1, too_long 1" in result.stdout
    assert taken(config) == 6
    assert quarantined(folder) == {5: "invalid_json", 6: "too_long"}


def test_a_fixed_line_and_a_longer_sequence(folder, config, media):
    lines = (folder / "a.jsonl").read_text().splitlines()
    lines[4] = json.dumps(conversation("fixed"))
    (folder / "a.jsonl").write_text("\n".join(lines) + "\n")
    shutil.copy(media / "one.png", media / "late.png")
    shutil.copy(media / "clip.mp4", media / "cut.mp4")
    result = run(folder, config, "data.sequence_length=512")
    assert result.exit_code == 0, result.stdout
    assert read_quarantine(folder / "run" / FILE_NAME) == []
    assert (folder / "run" / FILE_NAME).read_text() == ""


def test_a_video_that_opens_and_does_not_decode_stays(folder, config, media):
    (media / "late.png").write_bytes((media / "wide.jpg").read_bytes()[:-200])
    result = run(folder, config)
    assert result.exit_code == 1
    assert quarantined(folder)[3] == "broken_picture"
    assert taken(config) == 4


def test_a_header_that_ends_its_process_stays(folder, config, media, monkeypatch):
    install_harmful_headers(folder / "code", monkeypatch, "cut.mp4")
    shutil.copy(media / "one.png", media / "late.png")
    shutil.copy(media / "clip.mp4", media / "cut.mp4")
    result = run(folder, config, "data.index_processes=1")
    assert result.exit_code == 1
    assert quarantined(folder) == {4: "broken_video", 5: "invalid_json", 6: "too_long"}
    assert "a.jsonl:4: broken_video: the process that opened its headers ended or took too long" in result.stdout


ENTRY = {"source": "a", "path": "b", "line": 1, "reason": "no_answer", "detail": "c"}


@pytest.mark.parametrize(
    "content",
    [
        "garb",
        "[1, 2]",
        "12",
        '{"source": "a"}',
        json.dumps(ENTRY | {"line": "2"}),
        json.dumps(ENTRY | {"reason": "of another version"}),
        json.dumps(ENTRY | {"more": 1}),
        b"\xff\xfe",
        "data:\n  dataset: {}\n",
    ],
)
def test_a_file_of_another_kind_is_refused_and_stays(folder, config, content):
    content = content if isinstance(content, bytes) else content.encode()
    (folder / "run" / FILE_NAME).write_bytes(content)
    result = run(folder, config)
    assert isinstance(result.exception, DataError)
    assert "is no quarantine file" in str(result.exception)
    assert (folder / "run" / FILE_NAME).read_bytes() == content


def test_lines_that_are_no_entries_stay(folder, config):
    path, aim = folder / "run" / FILE_NAME, folder / "aim.jsonl"
    path.rename(aim)
    path.symlink_to(aim)
    strange = json.dumps(ENTRY | {"reason": "of another version"})
    aim.write_text(f"{strange}\n{aim.read_text()}")
    assert run(folder, config).exit_code == 1
    assert path.is_symlink()
    assert aim.read_text().splitlines()[0] == strange
    assert len(read_quarantine(aim)) == 4


def test_decodes_under_the_limits_of_the_run(folder, config, media):
    shutil.copy(media / "wide.jpg", media / "late.png")
    result = run(folder, config, "data.sample_timeout_seconds=1.0e-9")
    assert result.exit_code == 1
    assert quarantined(folder)[3] == "broken_picture"


def test_only_their_parts_are_indexed_again(folder, config, media, monkeypatch, caplog):
    monkeypatch.setattr("longvita.data.mix.catalog.IndexJob", lambda *rest: IndexJob(*rest, part_bytes=150))
    (folder / "a.jsonl").touch()
    taken(config)
    parts, real = [], build.index_part
    monkeypatch.setattr(build, "index_part", lambda path, part, *rest: parts.append(part) or real(path, part, *rest))
    shutil.copy(media / "one.png", media / "late.png")
    caplog.clear()
    run(folder, config)
    whole = make_format("jsonl", NO_OPTIONS).parts(str(folder / "a.jsonl"), 150)
    assert len(parts) == 1 < len(whole)
    content = (folder / "a.jsonl").read_bytes()[parts[0].start : parts[0].end]
    assert b"late.png" in content
    assert "since it was indexed" not in caplog.text
    assert taken(config) == 5


def test_tiles_are_decoded_in_pieces(folder, config, media, monkeypatch):
    """cut.mp4 breaks in a later piece than the first; what comes after it is decoded all the same."""
    monkeypatch.setattr(retry_quarantined, "MAX_DECODED_TILES", 3)
    shutil.copy(media / "one.png", media / "late.png")
    run(folder, config)
    assert 4 in quarantined(folder)
    assert 3 not in quarantined(folder)


def test_entries_of_no_file_and_of_no_line(folder, config):
    path = folder / "run" / FILE_NAME
    reason = read_quarantine(path)[0].reason
    QuarantineFile(path).add(
        [
            QuarantinedSample("b", "other.jsonl", 1, reason, "gone"),
            QuarantinedSample("a", str(folder / "a.jsonl"), 99, reason, "gone"),
        ]
    )
    result = run(folder, config)
    assert "other.jsonl:1: missing_file: gone (no file of source 'b' in this config)" in result.stdout
    assert "a.jsonl:99: invalid_sample: the file has no sample at this line any more" in result.stdout
    assert len(read_quarantine(path)) == 6


def test_no_such_file(config, folder):
    result = CliRunner().invoke(app, ["data", "retry", str(folder / "none.jsonl"), str(config)])
    assert isinstance(result.exception, DataError)
