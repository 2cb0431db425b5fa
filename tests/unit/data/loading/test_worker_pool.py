from __future__ import annotations

import dataclasses
import gc
import os
import pickle
import subprocess
import sys
import time

import av
import numpy as np
import pytest
from PIL import Image

from longvita.data.document import Document, DocumentReader
from longvita.data.errors import MediaError, Reason, SampleError
from longvita.data.loading import worker_pool as pool_module
from longvita.data.loading.worker import WorkerSetup
from longvita.data.loading.worker_pool import InlineReader, WorkerPool
from longvita.data.mix.catalog import build_catalog, make_template
from tests.unit.data.format_material import dump_json, llava, photograph, png, write_parquet, write_tar
from tests.unit.data.material import conversation, data_config, write_jsonl

SAMPLES = [
    conversation("hello"),
    conversation("<image>?", images=["wide.jpg"]),
    conversation("<video>?", videos=["clip.mp4"]),
    conversation("<video>?", videos=["cut.mp4"]),
]


class Stuff:
    """Requests for all tiles of samples or sources, by default those above, and the setup that reads them."""

    def __init__(self, folder, samples=SAMPLES, sources=None):
        write_jsonl(folder / "a.jsonl", samples)
        config = data_config(folder, sources or {"a": {"data_paths": ["a.jsonl"]}})
        self.template = make_template(config)
        catalog = build_catalog(config, self.template, config.data.dataset)
        requests = [catalog.request(sample) for sample in range(len(catalog.lengths))]
        self.requests = [dataclasses.replace(request, wanted=tuple(range(request.num_tiles))) for request in requests]
        self.settings = catalog.settings

    def pool(self, workers=1, limits=None, **settings):
        changed = dataclasses.replace(self.settings, **settings)
        return WorkerPool(WorkerSetup(self.template.tokenizer.to_json(), 1, changed, **(limits or {})), workers)

    def inline(self):
        return InlineReader(DocumentReader(self.template, self.settings))


def read_in_workers(stuff, requests, **options):
    """What a pool makes of one task."""
    pool = stuff.pool(**options)
    try:
        pool.submit(0, requests)
        return pool.result(0)
    finally:
        pool.close()


@pytest.fixture
def stuff(folder):
    return Stuff(folder)


def same(left, right):
    if isinstance(left, SampleError):
        return isinstance(right, SampleError) and (left.reason, left.detail) == (right.reason, right.detail)
    pairs = [
        (left.encoded.input_ids, right.encoded.input_ids),
        (left.encoded.labels, right.encoded.labels),
        (left.encoded.tile_starts, right.encoded.tile_starts),
        (left.pixels, right.pixels),
    ]
    return all(np.array_equal(one, other) for one, other in pairs)


def test_workers_and_the_training_process_read_identical_documents(stuff):
    pool, inline = stuff.pool(2), stuff.inline()
    try:
        for task in range(4):
            requests = stuff.requests[task:] + stuff.requests[:task]
            pool.submit(task, requests)
            inline.submit(task, requests)
        pool.submit(4, [])
        for task in range(4):
            pairs = zip(pool.result(task), inline.result(task), strict=True)
            assert all(same(left, right) for left, right in pairs)
        assert pool.result(4) == []
    finally:
        pool.close()


def test_workers_read_every_format(folder):
    clip = (folder / "media" / "clip.mp4").read_bytes()
    write_tar(folder / "b.tar", [("1.mp4", clip), ("1.txt", "a film"), ("2.png", png("red")), ("2.cls", "7")])
    write_parquet(folder / "c.parquet", [{"scan": [photograph(), png("blue")], "label": 3}])
    dump_json(folder / "d.json", [llava("<image>?", image="one.png")])
    (folder / "e").mkdir()
    (folder / "e" / "one.jpg").write_bytes(photograph())
    (folder / "e" / "one.txt").write_text("a cup")
    table = {"data_paths": ["c.parquet"], "columns": {"images": "scan", "caption": "label"}}
    stuff = Stuff(
        folder, sources={"files": {"data_paths": ["b.tar", "d.json", "e"]}, "table": {**table, "prompt": "What?"}}
    )
    pool, inline = stuff.pool(), stuff.inline()
    try:
        for reader in (pool, inline):
            reader.submit(0, stuff.requests)
        results = pool.result(0)
        assert all(same(left, right) for left, right in zip(results, inline.result(0), strict=True))
        assert [len(result.pixels) for result in results] == [8, 1, 5, 5, 6]
        assert "What?" in stuff.template.tokenizer.decode(results[4].encoded.input_ids.tolist())
    finally:
        pool.close()


def test_a_video_that_breaks_while_it_is_decoded(stuff):
    reader = stuff.inline()
    reader.submit(0, stuff.requests)
    results = reader.result(0)
    assert [type(result) for result in results] == [Document, Document, Document, MediaError]
    assert results[3].reason == Reason.BROKEN_VIDEO
    assert [result.pixels.shape for result in results[:3]] == [(0, 28, 28, 3), (4, 28, 28, 3), (8, 28, 28, 3)]


def test_only_wanted_tiles_are_decoded(stuff):
    request = dataclasses.replace(stuff.requests[2], wanted=(3, 4))
    every, some = stuff.inline(), stuff.inline()
    every.submit(0, [stuff.requests[2]])
    some.submit(0, [request])
    np.testing.assert_array_equal(some.result(0)[0].pixels, every.result(0)[0].pixels[3:5])
    # A broken video does no harm where none of its frames is wanted.
    some.submit(1, [dataclasses.replace(stuff.requests[3], wanted=())])
    assert isinstance(some.result(1)[0], Document)


def test_a_file_that_changed_is_an_error(stuff, folder):
    write_jsonl(folder / "a.jsonl", [conversation("jello"), *SAMPLES[1:]])
    write_jsonl(folder / "a.jsonl", [conversation("hello, longer than before"), *SAMPLES[1:]])
    reader = stuff.inline()
    reader.submit(0, stuff.requests[:1])
    with pytest.raises(RuntimeError, match="a.jsonl:1 differs from its index"):
        reader.result(0)
    pool = stuff.pool()
    try:
        pool.submit(0, stuff.requests[:1])
        with pytest.raises(RuntimeError, match="a.jsonl:1 differs from its index"):
            pool.result(0)
    finally:
        pool.close()


@pytest.fixture
def crashing_decoder(monkeypatch, tmp_path):
    """Workers that end, or hang, at each frame of a video."""

    def install(action):
        (tmp_path / "code").mkdir()
        (tmp_path / "code" / "av.py").write_text(f"import os, signal, time\n{action}\n")
        monkeypatch.setattr(sys, "path", [str(tmp_path / "code"), *sys.path])

    return install


@pytest.mark.parametrize(
    "action, code",
    [
        ("os._exit(7)", 7),
        ("os.kill(os.getpid(), signal.SIGKILL)", -9),
        ("import ctypes; ctypes.string_at(0)", -11),
    ],
)
def test_a_decoder_that_crashes_costs_one_document(stuff, crashing_decoder, action, code):
    crashing_decoder(action)
    pool = stuff.pool()
    try:
        pool.submit(0, stuff.requests)
        pool.submit(1, stuff.requests[:2])
        first, second = pool.result(0), pool.result(1)
    finally:
        pool.close()
    assert [type(result) for result in first] == [Document, Document, SampleError, SampleError]
    assert first[2].reason == Reason.BROKEN_VIDEO
    assert f"ended (exit code {code})" in first[2].detail
    assert [type(result) for result in second] == [Document, Document]


def test_a_decoder_that_hangs_costs_one_document(stuff, crashing_decoder, monkeypatch):
    crashing_decoder("time.sleep(1000)")
    # The limit leaves room for a slow start of the worker: silence counts from when it is given its task.
    monkeypatch.setattr(pool_module, "GRACE_SECONDS", 3.0)
    pool = stuff.pool(stall_seconds=1.0)
    try:
        pool.submit(0, stuff.requests[1:3])
        results = pool.result(0)
    finally:
        pool.close()
    assert [type(result) for result in results] == [Document, SampleError]
    assert "no sign of life for 4 s" in results[1].detail


def test_several_decoders_that_hang_cost_their_documents(stuff, crashing_decoder, monkeypatch):
    crashing_decoder("time.sleep(1000)")
    monkeypatch.setattr(pool_module, "GRACE_SECONDS", 3.0)
    pool = stuff.pool(workers=3, stall_seconds=1.0)
    try:
        pool.submit(0, [stuff.requests[number] for number in (2, 1, 2, 0, 2)])
        results = pool.result(0)
    finally:
        pool.close()
    assert [type(result) for result in results] == [SampleError, Document, SampleError, Document, SampleError]
    assert same(results[1], DocumentReader(stuff.template, stuff.settings).read(stuff.requests[1]))


def test_time_in_which_the_job_was_suspended_does_not_count(stuff):
    pool = stuff.pool()
    pool.close()
    (worker,) = pool._workers
    signs = worker.last_sign, worker.begun_at
    pool._forgive_suspension(time.monotonic() - pool_module.TURN_SECONDS - 0.5)
    assert (worker.last_sign, worker.begun_at) == signs
    pool._forgive_suspension(time.monotonic() - pool_module.TURN_SECONDS - 600)
    assert worker.last_sign - signs[0] == pytest.approx(600, abs=5)
    assert worker.begun_at - signs[1] == pytest.approx(600, abs=5)


ENDLESS_FILE = """
class Packet:
    size, pts, dts, is_keyframe, is_discard = 1, 0, 0, True, False

class File:
    def __init__(self, *arguments, **options):
        self.streams, self.video, self.frames = self, [self], 1
        self.disposition, self.index, self.codec_context = 0, 0, None
    def __enter__(self):
        return self
    def __exit__(self, *error):
        pass
    def demux(self, stream):
        while True:
            time.sleep(0.1)
            yield Packet()

open = File
"""


def test_a_decoder_that_never_ends_costs_one_document(stuff, crashing_decoder):
    """It gives signs of life all the time."""
    crashing_decoder(ENDLESS_FILE)
    first, second = read_in_workers(stuff, stuff.requests[1:3], limits={"sample_seconds": 4.0})
    assert isinstance(first, Document)
    assert isinstance(second, SampleError) and second.reason == Reason.BROKEN_VIDEO
    assert "took longer than 4 s (data.sample_timeout_seconds)" in second.detail


class TestMemory:
    """Bombs: small files with valid headers whose pixels need more memory than the limit."""

    LIMIT = {"memory_bytes": 256 << 20}

    @staticmethod
    def write_picture(path):
        Image.new("L", (12000, 12000)).save(path)

    @staticmethod
    def write_video(path):
        with av.open(str(path), "w") as container:
            stream = container.add_stream("png", rate=1)
            stream.width, stream.height, stream.pix_fmt = 9000, 9000, "gray"
            frame = av.VideoFrame.from_ndarray(np.zeros((9000, 9000), np.uint8), format="gray")
            container.mux([*stream.encode(frame), *stream.encode(None)])

    @pytest.mark.parametrize(
        "name, key, reason",
        [("bomb.png", "images", Reason.BROKEN_PICTURE), ("bomb.mov", "videos", Reason.BROKEN_VIDEO)],
    )
    def test_a_bomb_costs_one_document(self, folder, own_media, name, key, reason):
        media = own_media()
        write = self.write_picture if key == "images" else self.write_video
        write(media / name)
        assert (media / name).stat().st_size < 500_000
        mark = {"images": "<image>?", "videos": "<video>?"}[key]
        stuff = Stuff(folder, [SAMPLES[1], conversation(mark, **{key: [name]}), SAMPLES[2]])
        results = read_in_workers(stuff, stuff.requests, limits=self.LIMIT)
        assert [type(result) for result in results] == [Document, SampleError, Document], results
        assert results[1].reason == reason
        assert name in results[1].detail
        assert "data.decode_memory_bytes" in results[1].detail
        # With the usual limit it is a picture or video like any other.
        assert isinstance(read_in_workers(stuff, stuff.requests[1:2])[0], Document)

    def test_tiles_do_not_count(self, folder):
        """They are in shared memory: a long video is no bomb."""
        stuff = Stuff(folder, [SAMPLES[2]])
        stuff.settings = dataclasses.replace(stuff.settings, image_size=4000)
        (document,) = read_in_workers(stuff, stuff.requests, limits=self.LIMIT)
        assert document.pixels.nbytes > self.LIMIT["memory_bytes"]
        assert document.pixels.any(axis=(1, 2, 3)).all()


def test_tiles_outlive_the_pool(stuff):
    """They are in memory that is shared with workers, who may be gone."""
    results = read_in_workers(stuff, stuff.requests)
    inline = stuff.inline()
    inline.submit(0, stuff.requests)
    assert all(same(left, right) for left, right in zip(results, inline.result(0), strict=True))


def test_no_descriptors_are_left(stuff):
    def opened():
        return len(os.listdir("/proc/self/fd"))

    read_in_workers(stuff, stuff.requests)
    gc.collect()
    before = opened()
    for _ in range(2):
        read_in_workers(stuff, stuff.requests)
    gc.collect()
    assert opened() == before


def test_workers_that_cannot_start_are_an_error(stuff, monkeypatch, tmp_path):
    (tmp_path / "tokenizers.py").write_text("raise ImportError('not here')")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    pool = stuff.pool()
    try:
        pool.submit(0, stuff.requests)
        with pytest.raises(RuntimeError, match="data workers end repeatedly"):
            pool.result(0)
    finally:
        pool.close()


def test_closing_ends_the_workers(stuff):
    pool = stuff.pool(2)
    processes = [worker.process for worker in pool._workers]
    pool.submit(0, stuff.requests)
    pool.close()
    pool.close()
    assert all(process.poll() is not None for process in processes)


@pytest.mark.parametrize("decoder", ["", "import time; time.sleep(1000)"])
def test_workers_end_with_the_process_they_serve(stuff, tmp_path, decoder):
    """A killed training process leaves no worker behind, not even one that hangs in a decoder."""
    (tmp_path / "requests").write_bytes(pickle.dumps(stuff.requests))
    if decoder:
        (tmp_path / "code").mkdir()
        (tmp_path / "code" / "av.py").write_text(f"open({str(tmp_path / 'begun')!r}, 'w').close()\n{decoder}\n")
    code = (
        "import os, pickle, sys, time\n"
        "sys.path.insert(0, sys.argv[2])\n"
        "from pathlib import Path\n"
        "from longvita.data.loading.worker_pool import WorkerPool\n"
        "from longvita.data.loading.worker import WorkerSetup\n"
        "from longvita.data.media.item import MediaSettings\n"
        "pool = WorkerPool(WorkerSetup(Path(sys.argv[1]).read_text(), 1, MediaSettings()), 2)\n"
        "pool.submit(0, pickle.loads(Path(sys.argv[3]).read_bytes())[2:3])\n"
        "while not os.path.exists(sys.argv[4]) and pool._tasks[0].results == {}:\n"
        "    time.sleep(0.05)\n"
        "print(*(worker.process.pid for worker in pool._workers), flush=True)\n"
        "time.sleep(1000)\n"
    )
    (tmp_path / "tokenizer.json").write_text(stuff.template.tokenizer.to_json())
    arguments = [tmp_path / name for name in ("tokenizer.json", "code", "requests", "begun")]
    with subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        workers = [int(word) for word in process.stdout.readline().split()]
        assert len(workers) == 2
        process.kill()
    deadline = time.monotonic() + 60
    while any(alive(worker) for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(alive(worker) for worker in workers)


def alive(process_id):
    try:
        with open(f"/proc/{process_id}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_worker_does_without_torch():
    code = "import sys, longvita.data.loading.worker; print('torch' in sys.modules, 'transformers' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert result.stdout.split() == ["False", "False"]
