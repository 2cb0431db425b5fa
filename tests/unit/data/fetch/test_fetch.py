from __future__ import annotations

import hashlib
import json
import os
import random
import socket
import subprocess
import sys
import threading

import pytest
from huggingface_hub import close_session, constants
from typer.testing import CliRunner

from longvita.cli import app
from longvita.commands.data.fetch import FetchOptions, fetch_files
from longvita.data.errors import DataError
from longvita.data.fetch import download
from longvita.data.fetch.download import Downloader, FetchStopped, only_fetch
from longvita.data.fetch.wanted import WantedFile
from tests.conftest import REPOSITORY
from tests.tiny import tiny_config
from tests.unit.data.local_hub import COMMIT, LocalHub, serve

JSONL = "us/processed"
WORDS = random.Random(0).randbytes(40_000)
PICTURES = random.Random(1).randbytes(5_000)
SMALL = b'{"messages": []}\n'
CHUNK = 1024
REAL_HUB = constants.ENDPOINT


@pytest.fixture
def hub(monkeypatch):
    """A hub with the processed files and two originals; nothing else can be reached."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # the tests' own switch against the net
    for name in ("ENDPOINT", "HUGGINGFACE_CO_URL_TEMPLATE"):  # nobody listens at port 9
        nowhere = getattr(constants, name).replace(REAL_HUB, "http://127.0.0.1:9")
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", nowhere)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", CHUNK)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", "/nowhere/token")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")
    close_session()  # one made before may know a proxy
    refuse_the_net(monkeypatch)
    data_sets = {
        JSONL: {"jsonl/us/words/a.jsonl": WORDS, "jsonl/us/words/b (c,d).jsonl": SMALL},
        "us/words": {"a.jsonl": b"raw", "README.md": b"#"},
        "us/pictures": {"summary.jsonl": SMALL, "x/images.tar.gz.aa": PICTURES, "notes.txt": b"n"},
    }
    with serve(LocalHub(data_sets, small={"jsonl/us/words/b (c,d).jsonl"})) as running:
        yield running


def refuse_the_net(monkeypatch):
    connect = socket.socket.connect

    def only_here(self, address):
        assert self.family == socket.AF_UNIX or address[0] == "127.0.0.1", f"a test reaches for {address}"
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", only_here)


def config(**sources):
    dataset = {
        "words": {
            "data_paths": ["us/words/a.jsonl", "us/words/b (c,d).jsonl"],
            "found_at": "us/words",
            "licence": "mit",
        },
        "pictures": {"data_paths": ["us/pictures/summary.jsonl"], "found_at": ["us/pictures"], "files_at": ""},
        **sources,
    }
    return tiny_config(data={"dataset": dataset, "files_at": f"{JSONL}/jsonl"})


@pytest.fixture
def run(hub, tmp_path, capsys):
    """Runs the command on a config; returns the exit code and the JSON row of each file by target."""

    def call(of=None, **options):
        options = {"folder": str(tmp_path / "data"), "endpoint": hub.endpoint, "as_json": True, **options}
        code = fetch_files(of or config(), FetchOptions(**options))
        return code, {file["target"]: file for file in json.loads(capsys.readouterr().out)["files"]}

    return call


def partial_files(folder):
    return list((folder / ".cache/huggingface/download").rglob("*.incomplete"))


def states(files):
    return {name: file["state"] for name, file in files.items()}


def test_files_of_exact_names_need_no_listing_of_the_data_set(run, hub):
    code, _ = run(dry_run=True)
    assert code == 0
    assert not [path for path in hub.paths_requested() if "/tree/" in path]


def test_files_are_where_the_config_looks_for_them(run, tmp_path):
    code, files = run()
    assert code == 0
    assert set(states(files).values()) == {"fetched"}
    data = tmp_path / "data"
    assert (data / "us/words/a.jsonl").read_bytes() == WORDS
    assert (data / "us/words/b (c,d).jsonl").read_bytes() == SMALL
    assert (data / "us/pictures/summary.jsonl").read_bytes() == SMALL
    assert files["us/words/a.jsonl"]["repository"] == JSONL
    assert files["us/pictures/summary.jsonl"]["repository"] == "us/pictures"
    assert partial_files(data) == []


def test_patterns_ranges_and_folders(run, hub, tmp_path):
    names = ["shard-00.tar", "shard-01.tar", "data/train-0.parquet", "data/more/x.parquet"]
    hub.data_sets["us/p"] = {name: name.encode() for name in [*names, "other.txt"]}
    entries = ["us/p/shard-{00..01}.tar", "us/p/data/*.parquet", "us/p/data", "us/p/no-*.tar"]
    more = {"data_paths": entries, "found_at": ["us/p"], "files_at": ""}
    code, files = run(config(more=more), sources=["more"])
    assert code == 1
    assert states(files) == {**{f"us/p/{name}": "fetched" for name in names}, "us/p/no-*.tar": "missing"}
    assert (tmp_path / "data/us/p/data/train-0.parquet").read_bytes() == b"data/train-0.parquet"


def test_a_pattern_of_processed_files(run, hub, tmp_path):
    """Below files_at, which is a folder of the data set and not of the target."""
    more = {"data_paths": ["us/words/*.jsonl"], "found_at": ["us/words"]}
    assert states(run(config(more=more), sources=["more"])[1]) == {
        "us/words/a.jsonl": "fetched",
        "us/words/b (c,d).jsonl": "fetched",
    }


def test_a_second_run_asks_for_no_bytes(run, hub):
    run()
    hub.requests.clear()
    code, files = run()
    assert code == 0
    assert set(states(files).values()) == {"there"}
    assert {path.split("/")[1] for path in hub.paths_requested()} == {"api"}


def test_metadata_that_is_lost_or_broken_costs_no_download(run, hub, tmp_path):
    run()
    for damage in (lambda path: path.unlink(), lambda path: path.write_text("{oops")):
        damage(tmp_path / "data/.cache/huggingface/download/us/words/a.jsonl.metadata")
        hub.requests.clear()
        assert set(states(run()[1]).values()) == {"there"}
        assert {path.split("/")[1] for path in hub.paths_requested()} == {"api"}


@pytest.mark.parametrize("tries", [1, 2])
def test_a_cut_download_resumes_at_its_last_byte(run, hub, tmp_path, tries):
    name, middle = "jsonl/us/words/a.jsonl", 20 * CHUNK + 7
    hub.cut[name] = middle
    for _ in range(tries):
        code, files = run()
        assert (code, files["us/words/a.jsonl"]["state"]) == (1, "failed")
        assert not (tmp_path / "data/us/words/a.jsonl").exists()
    (part,) = partial_files(tmp_path / "data")
    there = part.stat().st_size
    assert 0 < there <= middle and part.read_bytes() == WORDS[:there]
    hub.cut.clear()
    hub.requests.clear()
    assert run()[0] == 0
    (request,) = hub.gets(f"{JSONL}/{name}")
    assert request["range"] == f"bytes={there}-"
    assert (tmp_path / "data/us/words/a.jsonl").read_bytes() == WORDS


def test_one_run_resumes_after_a_lost_connection(run, hub, monkeypatch, tmp_path):
    name = "jsonl/us/words/a.jsonl"
    hub.cut[name] = 20 * CHUNK
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: hub.cut.clear())
    assert run()[0] == 0
    assert [headers.get("range") for headers in hub.gets(f"{JSONL}/{name}")] == [None, f"bytes={20 * CHUNK}-"]
    assert (tmp_path / "data/us/words/a.jsonl").read_bytes() == WORDS


def test_a_partial_file_of_another_version_is_not_resumed(run, hub, tmp_path):
    name = "jsonl/us/words/a.jsonl"
    hub.cut[name] = 20 * CHUNK
    run()
    hub.cut.clear()
    hub.data_sets[JSONL][name] = newer = random.Random(2).randbytes(30_000)
    assert run()[0] == 0
    assert (tmp_path / "data/us/words/a.jsonl").read_bytes() == newer
    assert partial_files(tmp_path / "data") == []


@pytest.mark.parametrize("name", ["jsonl/us/words/a.jsonl", "jsonl/us/words/b (c,d).jsonl"])
def test_damaged_content_is_refused_removed_and_named(run, hub, tmp_path, name):
    content = bytearray(hub.data_sets[JSONL][name])
    content[len(content) // 2] ^= 1
    hub.damaged[name] = bytes(content)
    code, files = run()
    target = name.removeprefix("jsonl/")
    assert (code, files[target]["state"]) == (1, "failed")
    assert "sha" in files[target]["detail"] and "removed" in files[target]["detail"]
    assert not (tmp_path / "data" / target).exists()
    assert partial_files(tmp_path / "data") == []
    hub.damaged.clear()
    assert run()[0] == 0
    assert (tmp_path / "data" / target).read_bytes() == hub.data_sets[JSONL][name]


def test_content_of_another_length_is_refused(run, hub, tmp_path):
    hub.damaged["jsonl/us/words/a.jsonl"] = WORDS + b"more"
    code, files = run()
    assert (code, files["us/words/a.jsonl"]["state"]) == (1, "failed")
    assert not (tmp_path / "data/us/words/a.jsonl").exists()


class TestGated:
    def test_says_where_to_accept_and_how_to_log_in(self, run, hub):
        hub.gated.add("us/pictures")
        code, files = run()
        assert code == 1
        assert states(files)["us/words/a.jsonl"] == "fetched"
        assert files["us/pictures/summary.jsonl"]["state"] == "gated"
        detail = files["us/pictures/summary.jsonl"]["detail"]
        assert f"{hub.endpoint}/datasets/us/pictures" in detail and "hf auth login" in detail

    def test_the_token_opens_it_and_is_kept_from_other_hosts(self, run, hub, monkeypatch):
        hub.gated.add("us/pictures")
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        code, files = run()
        assert (code, files["us/pictures/summary.jsonl"]["state"]) == (0, "fetched")
        assert all("authorization" not in headers for headers in hub.gets("us/pictures/summary.jsonl"))
        assert any(headers.get("authorization") == "Bearer hf_secret" for _, _, headers in hub.requests)


class TestMissing:
    def test_a_file(self, run, hub):
        del hub.data_sets[JSONL]["jsonl/us/words/a.jsonl"]
        code, files = run()
        assert code == 1
        assert files["us/words/a.jsonl"]["state"] == "missing"
        assert f"{hub.endpoint}/datasets/{JSONL}" in files["us/words/a.jsonl"]["detail"]
        assert files["us/words/b (c,d).jsonl"]["state"] == "fetched"

    def test_a_data_set(self, run, hub):
        del hub.data_sets["us/pictures"]
        code, files = run()
        assert (code, files["us/pictures/summary.jsonl"]["state"]) == (1, "missing")
        assert files["us/words/a.jsonl"]["state"] == "fetched"

    def test_the_original_of_the_same_name_is_not_used(self, run, hub, tmp_path):
        """The original's file is of another form; only what files_at names is the right one."""
        del hub.data_sets[JSONL]["jsonl/us/words/a.jsonl"]
        run()
        assert not (tmp_path / "data/us/words/a.jsonl").exists()


def test_a_data_set_that_was_renamed(run, hub, tmp_path):
    hub.data_sets["us/renamed"] = hub.data_sets.pop(JSONL)
    hub.renamed[JSONL] = "us/renamed"
    assert run()[0] == 0
    assert (tmp_path / "data/us/words/a.jsonl").read_bytes() == WORDS


def test_a_dry_run_writes_nothing_and_counts_bytes(run, hub, tmp_path):
    code, files = run(dry_run=True)
    assert code == 0
    assert set(states(files).values()) == {"wanted"}
    assert sum(file["bytes"] for file in files.values()) == len(WORDS) + 2 * len(SMALL)
    assert not (tmp_path / "data").exists()
    assert {path.split("/")[1] for path in hub.paths_requested()} == {"api"}
    run()
    assert set(states(run(dry_run=True)[1]).values()) == {"there"}


def test_media_brings_archives_and_leaves_the_rest(run, hub, tmp_path):
    code, files = run(media=True)
    assert code == 0
    assert (tmp_path / "data/us/pictures/x/images.tar.gz.aa").read_bytes() == PICTURES
    assert files["us/pictures/x/images.tar.gz.aa"]["source"] == "pictures"
    assert not any(name.endswith(("notes.txt", "README.md")) for name in files)
    assert run(media=True, dry_run=True)[1]["us/pictures/x/images.tar.gz.aa"]["state"] == "there"


def test_source_picks_and_refuses_unknown_names(run):
    assert set(run(sources=["pictures"])[1]) == {"us/pictures/summary.jsonl"}
    with pytest.raises(DataError, match=r"--source nothing: the mix has no such source; .* words, pictures"):
        run(sources=["nothing"])


def test_unused_and_private_sources_are_not_fetched(run):
    off = {"data_paths": ["us/off.jsonl"], "found_at": "us/off", "ratio": 0.0}
    own = {"data_paths": ["mine.jsonl"]}
    assert set(run(config(off=off, own=own))[1]) == {
        "us/words/a.jsonl",
        "us/words/b (c,d).jsonl",
        "us/pictures/summary.jsonl",
    }
    with pytest.raises(DataError, match="found_at"):
        run(tiny_config(data={"dataset": {"own": own}}))


def test_held_out_sources_are_fetched_too(run, tmp_path):
    held_out = {"exam": {"data_paths": ["us/pictures/summary.jsonl"], "found_at": "us/pictures"}}
    code, files = run(tiny_config(data={"validation": held_out}))
    assert (code, files["us/pictures/summary.jsonl"]["source"]) == (0, "validation/exam")


class TestNothingOutsideTheFolder:
    @pytest.mark.parametrize("path", ["../a.jsonl", "us/../../a.jsonl", "/etc/a.jsonl", "us\\..\\a.jsonl", ""])
    def test_a_path_of_the_config(self, run, hub, path):
        source = {"data_paths": [path], "found_at": "us/words"}
        with pytest.raises(DataError, match="is refused"):
            run(config(words=source))
        assert hub.requests == []

    def test_files_at(self, run):
        with pytest.raises(DataError, match="is refused"):
            run(config(words={"data_paths": ["a.jsonl"], "found_at": "us/words", "files_at": "us/processed/../.."}))

    def test_a_path_of_the_hub(self, run, hub, tmp_path):
        hub.data_sets["us/pictures"]["../../evil.zip"] = b"evil"
        with pytest.raises(DataError, match=r"'../../evil.zip' is refused"):
            run(media=True)
        assert not list(tmp_path.rglob("evil.zip"))

    def test_a_link_that_leads_out(self, run, tmp_path):
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "data").mkdir()
        (tmp_path / "data/us").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(DataError, match="leads out of"):
            run()
        assert not any((tmp_path / "elsewhere").iterdir())


class TestFilesThatAreThere:
    def test_the_user_s_own_file_is_never_replaced(self, run, hub, tmp_path):
        place = tmp_path / "data/us/words/a.jsonl"
        place.parent.mkdir(parents=True)
        place.write_bytes(b"mine")
        code, files = run()
        assert (code, files["us/words/a.jsonl"]["state"]) == (1, "failed")
        assert "move it away" in files["us/words/a.jsonl"]["detail"]
        assert place.read_bytes() == b"mine"

    def test_the_same_file_from_elsewhere_is_accepted(self, run, hub, tmp_path):
        place = tmp_path / "data/us/words/a.jsonl"
        place.parent.mkdir(parents=True)
        place.write_bytes(WORDS)
        assert run()[1]["us/words/a.jsonl"]["state"] == "there"
        assert hub.gets(f"{JSONL}/jsonl/us/words/a.jsonl") == []

    def test_a_newer_version_replaces_what_was_fetched_and_left_alone(self, run, hub, tmp_path):
        run()
        hub.data_sets[JSONL]["jsonl/us/words/a.jsonl"] = b"newer"
        assert run()[1]["us/words/a.jsonl"]["state"] == "fetched"
        assert (tmp_path / "data/us/words/a.jsonl").read_bytes() == b"newer"

    def test_what_was_fetched_and_then_changed_is_kept_and_reported(self, run, tmp_path):
        run()
        place = tmp_path / "data/us/words/a.jsonl"
        place.write_bytes(b"changed")
        code, files = run()
        assert (code, files["us/words/a.jsonl"]["state"]) == (1, "failed")
        assert place.read_bytes() == b"changed"

    def test_an_old_file_in_the_place_of_a_fetched_one_is_kept(self, run, hub, tmp_path):
        run()
        place = tmp_path / "data/us/words/a.jsonl"
        place.write_bytes(b"restored")
        os.utime(place, (1, 1))
        hub.data_sets[JSONL]["jsonl/us/words/a.jsonl"] = b"newer"
        code, files = run()
        assert (code, files["us/words/a.jsonl"]["state"]) == (1, "failed")
        assert place.read_bytes() == b"restored"


def test_two_fetches_into_one_folder(run, tmp_path):
    with only_fetch(tmp_path / "data"):
        with pytest.raises(DataError, match="another `longvita data fetch` is filling"):
            run()


def test_a_disk_that_is_too_small(run, monkeypatch, tmp_path):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 1000}))
    with pytest.raises(DataError, match=r"40.0 kB are still to be downloaded, and the disk of .* has 1.0 kB left"):
        run()


def test_a_file_that_the_hub_does_not_serve_over_http_comes_by_the_library(run, monkeypatch, tmp_path):
    """On the Hub that is Xet; here hf_hub_download, which knows another limit, uses HTTP."""
    monkeypatch.setattr(download, "MAX_HTTP_DOWNLOAD_SIZE", 10_000)
    code, files = run()
    assert (code, files["us/words/a.jsonl"]["state"]) == (0, "fetched")
    assert (tmp_path / "data/us/words/a.jsonl").read_bytes() == WORDS
    assert set(states(run()[1]).values()) == {"there"}


def test_a_hub_that_cannot_be_reached(run):
    code, files = run(endpoint="http://127.0.0.1:9")
    assert code == 1
    assert set(states(files).values()) == {"failed"}
    assert "http://127.0.0.1:9/datasets/us" in files["us/words/a.jsonl"]["detail"]


def test_an_endpoint_that_is_no_address(run):
    with pytest.raises(DataError, match="--endpoint 'hub' is no address"):
        run(endpoint="hub")


def test_stopping_keeps_what_came(hub, tmp_path):
    """As an interrupt does it: the transfers stop at their next bytes, and the partial file stays."""
    downloader = Downloader(tmp_path / "data", hub.endpoint)
    (file,) = downloader.list_files([WantedFile("pictures", "us/pictures", "", "us/pictures")])
    came = 0

    def on_bytes(number):
        nonlocal came
        came += number
        if came >= 2 * CHUNK:
            downloader.stop()

    with pytest.raises(FetchStopped):
        downloader.fetch(file, on_bytes)
    (part,) = partial_files(tmp_path / "data")
    assert part.read_bytes() == PICTURES[: part.stat().st_size] != b""
    assert downloader.missing_bytes(file) == len(PICTURES) - part.stat().st_size


def test_an_interrupt_stops_all_threads(tmp_path, monkeypatch):
    downloader, stopped = Downloader(tmp_path), threading.Event()
    monkeypatch.setattr(downloader, "stop", stopped.set)

    def work(file, on_bytes):
        if file == "interrupted":
            raise KeyboardInterrupt
        return stopped.wait(30)

    monkeypatch.setattr(downloader, "fetch", work)
    with pytest.raises(KeyboardInterrupt):
        downloader.fetch_all(["interrupted", "busy", "waiting"], 2, int, id)
    assert stopped.is_set()


def test_metadata_says_which_version_came(run, tmp_path):
    run()
    lines = (tmp_path / "data/.cache/huggingface/download/us/words/a.jsonl.metadata").read_text().splitlines()
    assert lines[:2] == [COMMIT, hashlib.sha256(WORDS).hexdigest()]


CONFIG = f"""
data:
  files_at: {JSONL}/jsonl
  dataset:
    words: {{data_paths: [us/words/a.jsonl, us/words/gone.jsonl], found_at: us/words, licence: mit}}
    films: {{data_paths: [us/pictures/summary.jsonl], files_at: "", licence: none,
      found_at: [us/pictures, "https://example.org/films"]}}
"""


def test_the_command_line(hub, tmp_path, write_yaml):
    arguments = [
        "data",
        "fetch",
        str(write_yaml(CONFIG)),
        f"data.data_root={tmp_path}/data",
        "--endpoint",
        hub.endpoint,
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    rows = [line.replace("│", " ").split() for line in result.stdout.splitlines()]
    assert ["words", "2", "40.0", "kB", "1", "1"] in rows  # files, size, fetched, missing
    assert ["films", "1", "17", "bytes", "1"] in rows
    assert f"missing: not at {hub.endpoint}/datasets/{JSONL}\n  us/words/gone.jsonl" in result.stdout
    assert "films is only partly on the Hub; get it by hand from https://example.org/films" in result.stdout
    assert (tmp_path / "data/us/words/a.jsonl").read_bytes() == WORDS
    assert CliRunner().invoke(app, [*arguments, "--source", "films"]).exit_code == 0


def test_hf_endpoint_is_honoured(hub, tmp_path, write_yaml):
    """huggingface_hub reads HF_ENDPOINT when it is imported, so in a process of its own."""
    command = [sys.executable, "-m", "longvita", "data", "fetch", str(write_yaml(CONFIG)), "--source", "films"]
    environment = {"PYTHONPATH": str(REPOSITORY), "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home")}
    result = subprocess.run(
        [*command, "--to", str(tmp_path / "data")], env=environment, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "data/us/pictures/summary.jsonl").read_bytes() == SMALL
    assert "fetched us/pictures/summary.jsonl" in result.stderr
