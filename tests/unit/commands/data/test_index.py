"""`longvita data index`: what it prints of every file, and that it resumes what is there."""

from __future__ import annotations

import functools
import json
import os
import shlex
import shutil
import subprocess
import sys
import textwrap
import time

import pytest
from typer.testing import CliRunner

from longvita.cli import app
from longvita.config import to_yaml
from longvita.data.errors import DataError
from longvita.data.index import build, editions
from longvita.data.index.store import IndexJob, IndexProgress
from longvita.data.mix import progress as data_progress
from tests.conftest import REPOSITORY
from tests.unit.data.format_material import png, write_arrow, write_parquet
from tests.unit.data.loading.test_worker_pool import alive
from tests.unit.data.material import conversation, data_config, write_jsonl

SAMPLES = [
    conversation("hello"),
    conversation("<image>?", images=["wide.jpg"]),
    conversation("<video>?<video>", videos=["clip.mp4", "frames"]),
    conversation("x" * 300),
    "{oops",
]
HELD_OUT = [conversation(f"held {number}") for number in range(3)]


def write_config(folder, sources, **data):
    """A config file of a mix, with what `load` checks beyond the tests' own configs."""
    config = data_config(folder, sources, **data)
    fitting = config.inference.model_copy(update={"max_seq_len": 1024, "max_new_tokens": 64})
    path = folder / "config.yaml"
    path.write_text(to_yaml(config.model_copy(update={"inference": fitting})))
    return path


@pytest.fixture
def config(folder):
    write_jsonl(folder / "a.jsonl", SAMPLES)
    write_jsonl(folder / "b.jsonl", SAMPLES[:1] * 4)
    write_jsonl(folder / "held.jsonl", HELD_OUT)
    sources = {"a": {"data_paths": ["a.jsonl", "b.jsonl"]}, "off": {"data_paths": ["none.jsonl"], "ratio": 0.0}}
    return write_config(folder, sources, validation={"a": {"data_paths": ["held.jsonl"]}})


def run(config, *options):
    return CliRunner().invoke(app, ["data", "index", str(config), *options])


def test_one_object(config):
    result = run(config, "--json")
    assert result.exit_code == 0
    figures = json.loads(result.stdout)
    assert set(figures) == {"training", "held_out", "missing"}
    assert set(figures["training"]) == {"a"}
    a = figures["training"]["a"]
    assert (a["files"], a["samples"]) == (2, 9)
    assert a["quarantined"] == {"invalid_json": 1, "too_long": 1}
    assert (a["pictures"], a["videos"], a["frames"]) == (1, 2, 16)
    rows, media, rates = 8 * 32, 3 * 8, 2 * 8
    assert a["index_bytes"] == rows + media + rates
    assert a["bytes_a_sample"] == pytest.approx(a["index_bytes"] / 7, abs=0.01)
    assert figures["held_out"]["a"]["samples"] == 3


def test_what_is_not_used_is_counted_by_name(config, folder):
    more = [{**conversation("x"), "tools": "[]", "source": "web", "id": 3}, {**conversation("y"), "tools": "[]"}]
    many = [{**conversation("z"), f"key{number}": 1} for number in range(60)]
    write_jsonl(folder / "a.jsonl", more + many)
    write_jsonl(folder / "b.jsonl", more)
    result = run(config, "--json")
    assert "not used of source 'a', with the number of its samples: tools 4, source 2, key0 1, key1 1" in result.stderr
    unused = json.loads(result.stdout)["training"]["a"]["unused"]
    assert (unused["tools"], unused["source"], unused["(other names)"]) == (4, 2, 12)
    assert len(unused) == 51
    assert json.loads(run(config, "--json").stdout)["training"]["a"]["unused"] == unused
    assert json.loads(run(config, "--json").stdout)["held_out"]["a"]["unused"] == {}


@pytest.mark.parametrize("write, name, ratio", [(write_parquet, "a.parquet", 12), (write_arrow, "a.arrow", 0)])
def test_large_row_groups(folder, write, name, ratio):
    """The printed command writes the same samples as archives, of which each is read by itself."""
    rows = [{"q": "<image>?", "a": f"{number}", "scan": png("red", 8 + number)} for number in range(24)]
    path = write(folder / name, rows, 12)
    write_jsonl(folder / "b.jsonl", SAMPLES[:1])
    columns = {"question": "q", "answer": "a", "images": "scan"}
    sources = {"the scans": {"data_paths": [path.name], "columns": columns}, "b": {"data_paths": ["b.jsonl"]}}
    config = write_config(folder, sources)
    result = run(config, "seed=3", "--json")
    figures = json.loads(result.stdout)["training"]
    assert {source: one["read_ratio"] for source, one in figures.items()} == {"the scans": ratio, "b": 0}
    lines = [line for line in result.stderr.splitlines() if "to read, because" in line]
    assert len(lines) == (ratio > 0)
    for line in lines:
        assert "source 'the scans': a sample's images or videos cost up to 12 times their bytes" in line
        command, _, then = line.partition("fix: ")[2].partition(", then ")
        assert then == "data_paths: [DIR/*.tar] without columns"
        words = shlex.split(command.replace("DIR", str(folder / "out")))
        assert words[0] == "longvita"
        assert CliRunner().invoke(app, words[1:]).exit_code == 0
        sources["the scans"] = {"data_paths": ["out/*.tar"]}
        again = run(write_config(folder, sources), "--json")
        converted = json.loads(again.stdout)["training"]["the scans"]
        assert converted["read_ratio"] == 0
        assert [converted[key] for key in ("samples", "pictures", "tokens")] == [
            figures["the scans"][key] for key in ("samples", "pictures", "tokens")
        ]


def test_row_groups_of_ten_rows_are_not_large(folder):
    write_parquet(folder / "a.parquet", [{"caption": "it", "image": png("red", 8 + n)} for n in range(20)], 10)
    assert "to read, because" not in run(write_config(folder, {"a": {"data_paths": ["a.parquet"]}})).stderr


def test_table(config):
    text = run(config).stdout
    assert "invalid_json 1" in text and "too_long 1" in text
    assert "held out" in text


def test_what_is_indexed_stays(config, folder, monkeypatch):
    run(config)
    monkeypatch.setattr(build, "index_part", lambda *_: pytest.fail("indexed again"))
    assert run(config).exit_code == 0
    monkeypatch.undo()
    seen, real = [], build.index_part
    monkeypatch.setattr(build, "index_part", lambda path, *rest: seen.append(path) or real(path, *rest))
    write_jsonl(folder / "b.jsonl", SAMPLES[:1] * 5)
    assert json.loads(run(config, "--json").stdout)["training"]["a"]["samples"] == 10
    assert seen == [str(folder / "b.jsonl")]


def test_processes(config, monkeypatch):
    asked = []
    monkeypatch.setattr("longvita.commands.data.index.index_all", lambda config, *_: asked.append(config.data) or 0)
    run(config, "data.index_processes=2", "--processes", "3")
    assert [data.index_processes for data in asked] == [3]


def test_quarantined_samples_can_be_checked_again(config, folder, own_media):
    media = own_media()
    write_jsonl(folder / "a.jsonl", [*SAMPLES, conversation("<image>?", images=["late.png"])])
    result = run(config)
    quarantine = folder / "run" / "quarantine.jsonl"
    assert str(quarantine) in result.stderr
    assert "late.png does not exist" in quarantine.read_text()
    shutil.copy(media / "one.png", media / "late.png")
    assert "missing_file 1" in run(config).stdout
    assert CliRunner().invoke(app, ["data", "retry", str(quarantine), str(config)]).exit_code == 1
    assert "missing_file" not in run(config).stdout + quarantine.read_text()


def test_rebuild(config, folder, own_media):
    media = own_media()
    write_jsonl(folder / "a.jsonl", [*SAMPLES, conversation("<image>?", images=["late.png"])])
    assert "missing_file 1" in run(config).stdout
    shutil.copy(media / "one.png", media / "late.png")
    assert "missing_file" not in run(config, "--rebuild").stdout
    assert "missing_file" not in run(config).stdout


def test_files_without_usable_samples_are_printed(config, folder):
    (folder / "b.jsonl").write_text("")
    result = run(config)
    assert f"{folder / 'b.jsonl'} of source 'a' has no sample that can be used" in result.stderr
    assert f"first quarantined: {folder / 'a.jsonl'}:" in result.stderr


def test_files_that_are_left_out_are_printed(config, folder):
    (folder / "b.jsonl").unlink()
    result = run(config, "--allow-missing", "--json")
    assert result.exit_code == 0, result.exception
    assert json.loads(result.stdout)["missing"] == {"training": {"a": [str(folder / "b.jsonl")]}, "held_out": {}}
    assert (
        f"data.allow_missing leaves them out: 1 data file of 1 source is missing:\n  a:\n    {folder / 'b.jsonl'}"
        in (result.stderr)
    )


@pytest.mark.parametrize("processes", [0, 1])
def test_a_media_root_that_is_not_there_ends_the_pass(folder, processes):
    write_jsonl(folder / "a.jsonl", SAMPLES)
    config = write_config(folder, {"a": {"data_paths": ["a.jsonl"], "media_root": str(folder / "mount")}})
    result = run(config, "--processes", str(processes))
    assert isinstance(result.exception, DataError)
    assert f"has media below {folder / 'mount'}, which does not exist: mount it" in str(result.exception)
    shutil.copytree(folder / "media", folder / "mount")
    assert "missing_file" not in run(config).stdout


def test_processes_end_with_their_parent(config, folder):
    """A parent that is killed outright: its processes go, whatever they wait for."""
    code = (
        "import os, signal; from longvita.config import load; from longvita.data.mix.catalog import make_template\n"
        "from longvita.data.index.process_pool import IndexProcessPool\n"
        f"config = load({str(config)!r}); processes = IndexProcessPool.of(config, make_template(config))\n"
        "pool = processes._pool_of(1); print(pool.submit(os.getpid).result(), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    command = [sys.executable, "-c", "if __name__ == '__main__':\n" + textwrap.indent(code, "  ")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    worker = int(result.stdout)
    deadline = time.monotonic() + 60
    while alive(worker) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive(worker)


def test_a_missing_file(config, folder):
    (folder / "b.jsonl").unlink()
    result = run(config)
    assert isinstance(result.exception, DataError)
    assert "b.jsonl" in str(result.exception)


def test_the_bar_counts_bytes_and_quarantined_samples(monkeypatch):
    seen = []
    monkeypatch.setattr(data_progress.bars.Progress, "update", lambda self, task, **fields: seen.append(fields))
    with data_progress.indexing() as show:
        show(IndexProgress(files=2, done=0, total=400, quarantined=0, processes=2))
        show(IndexProgress(files=2, done=150, total=400, quarantined=3, processes=2))
    shown = [(fields["completed"], fields["total"], fields["found"]) for fields in seen]
    assert shown == [(0, 400, "0 quarantined"), (150, 400, "3 quarantined")]


def test_lines_without_a_terminal(capsys):
    """The first part's line, then one a minute, with the time left at the speed so far."""
    now = [0.0]
    lines = data_progress.IndexingLines(lambda: now[0])
    for done, now[0] in ((0, 100.0), (10, 110.0), (20, 120.0), (50, 175.0), (100, 300.0)):
        lines.print_due(IndexProgress(files=3, done=done * 10**9, total=100 * 10**9, quarantined=done, processes=8))
    assert capsys.readouterr().err.splitlines() == [
        "indexing 100.0 GB of 3 data files without a current index, in 8 processes",
        "indexing: 10% of 100.0 GB, 10 quarantined, about 90 s left",
        "indexing: 50% of 100.0 GB, 50 quarantined, about 75 s left",
    ]


def test_nothing_is_printed_of_files_that_are_indexed(config):
    assert "indexing" in run(config).stderr
    assert "indexing" not in run(config).stderr


class TestShares:
    @pytest.mark.parametrize("has_locks", [True, False])
    def test_together_make_the_index_that_one_process_makes(self, config, folder, monkeypatch, has_locks):
        def refuse(*_arguments):
            raise OSError("no locks")

        if not has_locks:
            monkeypatch.setattr(editions.fcntl, "flock", refuse)
        monkeypatch.setattr("longvita.data.mix.catalog.IndexJob", lambda *rest: IndexJob(*rest, part_bytes=150))
        seen, real = [], build.index_part
        monkeypatch.setattr(build, "index_part", lambda path, part, *rest: seen.append(part) or real(path, part, *rest))
        alone = run(config, "data.index_cache=" + str(folder / "other"), "--json").stdout
        parts, counts = len(seen), []
        for number in (2, 3, 1):
            before = len(seen)
            result = run(config, "--part", f"{number}/3")
            assert result.exit_code == 0, result.exception
            counts.append(len(seen) - before)
            is_last = number == 1
            assert ("every data file has its index" in result.stdout) == is_last
        assert sum(counts) == parts and min(counts) >= 2
        assert run(config, "--json").stdout == alone
        assert len(seen) == 2 * parts
        assert list((folder / "index").rglob("parts")) == []

    def test_of_tasks_that_run_at_once(self, config, folder):
        command = [sys.executable, "-m", "longvita", "data", "index", str(config)]
        start = functools.partial(subprocess.Popen, command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
        place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "LOCAL_WORLD_SIZE": "2"}
        tasks = [start(env={**os.environ, **place, "RANK": rank, "LOCAL_RANK": rank}) for rank in "01"]
        texts = [task.communicate(timeout=120)[0] for task in tasks]
        assert [task.returncode for task in tasks] == [0, 0]
        assert all(f"share {rank} of 2 is indexed" in text for rank, text in enumerate(texts, 1))
        assert any("every data file has its index" in text for text in texts)
        assert "indexing" not in run(config).stderr

    def test_the_index_of_a_share_that_never_came_is_completed(self, config):
        run(config, "--part", "1/2")
        result = run(config, "--json")
        assert json.loads(result.stdout)["training"]["a"]["samples"] == 9

    @pytest.mark.parametrize("part", ["0/2", "3/2", "2", "a/b", "1/0"])
    def test_that_do_not_exist(self, config, part):
        result = run(config, "--part", part)
        assert result.exit_code == 2
        assert "is not K/N with K from 1 to N" in result.stderr

    def test_are_not_rebuilt(self, config):
        result = run(config, "--part", "1/2", "--rebuild")
        assert result.exit_code == 2
        assert "--rebuild" in result.stderr and "goes with one process" in result.stderr


class TestExitCode:
    """1 if a run would not start with a source; figures, problems and the quarantine file are written all the same."""

    def test_a_source_without_a_usable_sample(self, config, folder):
        for name in "ab":
            write_jsonl(folder / f"{name}.jsonl", ["{oops"] * 2)
        result = run(config, "--json")
        assert result.exit_code == 1
        assert json.loads(result.stdout)["training"]["a"]["quarantined"] == {"invalid_json": 4}
        assert "source 'a': none of its 4 samples can be used: invalid_json 4" in result.stderr
        assert len((folder / "run" / "quarantine.jsonl").read_text().splitlines()) == 4

    def test_too_many_quarantined_samples(self, config, folder):
        write_jsonl(folder / "b.jsonl", [*SAMPLES[:1] * 90, *["{oops"] * 10])
        result = run(config)
        assert result.exit_code == 1 and "invalid_json 11" in result.stdout
        assert "source 'a': 12 of its 105 samples (11.4%) are quarantined" in result.stderr
        assert run(config, "data.max_quarantined=0.12").exit_code == 0

    def test_a_held_out_source(self, config, folder):
        write_jsonl(folder / "held.jsonl", ["{oops"])
        result = run(config)
        assert result.exit_code == 1 and "none of its 1 samples can be used" in result.stderr

    def test_many_files_of_another_format(self, folder):
        """Each is one entry; the first ones are named."""
        (folder / "c").mkdir()
        for number in range(30):
            (folder / "c" / f"{number:02}.jsonl").write_text(json.dumps(SAMPLES * 9, indent=1))
        result = run(write_config(folder, {"a": {"data_paths": ["c/*.jsonl"]}}))
        assert result.exit_code == 1 and "wrong_format 30" in result.stdout
        assert "and 20 more files have none" in result.stderr
        assert "30 of its 30 files are not of their format" in result.stderr
        assert len((folder / "run" / "quarantine.jsonl").read_text().splitlines()) == 30
        assert len(result.stderr.splitlines()) < 40
