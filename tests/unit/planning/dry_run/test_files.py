"""Problems that a dry run finds in data files, tokenizers and checkpoints."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from longvita.checkpoint import manifest
from longvita.checkpoint.hf.safetensors_folder import SafetensorsReader, ShardedWriter
from longvita.checkpoint.hf.tensor_map import hf_tensors
from longvita.checkpoint.hf.tensor_names import LONG_VITA
from longvita.config import dump, load_with_origins
from longvita.config.errors import Problem
from longvita.config.loader import locate
from longvita.planning.dry_run import data_check, weight_check
from longvita.planning.dry_run.problems import field_named_in
from tests.e2e.training_material import write_run
from tests.tiny_folder import write_tiny_model


def problems_of(path: Path, *overrides: str) -> list[Problem]:
    """Problems with their places in the config."""
    loaded = load_with_origins(path, list(overrides))
    return [locate(problem, loaded) for problem in data_check.find_problems(loaded.config)]


def line_of(path: Path, words: str) -> int:
    return next(number for number, line in enumerate(path.read_text().splitlines(), 1) if words in line)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The config of a run whose files all exist."""
    return write_run(tmp_path)


def test_intact_files_are_accepted(run: Path) -> None:
    assert problems_of(run) == []


@pytest.mark.parametrize(
    "text, says",
    [
        ("this is no JSON\n" * 3, "first 3 samples have errors"),
        ("", "the file is empty"),
        ('[{"messages": []}]\n', "it is a JSON array; fix: set its source's format to json"),
    ],
    ids=["no json", "empty", "an array"],
)
def test_a_data_file_of_another_format(run: Path, text: str, says: str) -> None:
    (run.parent / "words.jsonl").write_text(text)
    (problem,) = problems_of(run)
    assert problem.field == "data.dataset.words.data_paths"
    assert says in problem.message
    assert (problem.origin.file, problem.origin.line) == (run, line_of(run, "words.jsonl") - 1)


def test_samples_that_all_are_too_long(run: Path) -> None:
    (problem,) = problems_of(run, "data.sequence_length=8", "data.max_num_frames=1")
    assert problem.field == "data.sequence_length" and "none of the first samples of the mix fits" in problem.message
    assert str(problem.origin) == "override"


def test_a_mix_of_nothing(run: Path) -> None:
    (problem,) = problems_of(run, "data.dataset.words.ratio=0", "data.dataset.pictures.ratio=0")
    assert problem.field == "data.dataset" and "nothing to train on" in problem.message


def test_files_of_held_out_sources_are_checked_too(run: Path) -> None:
    (run.parent / "held_out.jsonl").write_text("{}\n")
    assert [problem.field for problem in problems_of(run)] == ["data.validation.held_out.data_paths"]


def test_a_table_without_its_columns(run: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"weather": ["rain"]}), run.parent / "table.parquet")
    (problem,) = problems_of(run, "data.dataset.words.data_paths=[table.parquet]")
    assert "it has weather" in problem.message


def test_a_damaged_archive(run: Path) -> None:
    (run.parent / "shard.tar").write_bytes(b"not an archive" * 100)
    (problem,) = problems_of(run, "data.dataset.words.data_paths=[shard.tar]")
    assert problem.field == "data.dataset.words.data_paths"


def test_pictures_in_another_folder(run: Path) -> None:
    (problem,) = problems_of(run, f"data.media_root={run.parent / 'run'}")
    assert problem.field == "data.media_root"
    assert "no picture or video of source pictures can be opened" in problem.message


def test_a_tokenizer_with_more_ids_than_the_model_has_rows(run: Path) -> None:
    (problem,) = problems_of(run, "model.language.vocab_size=128")
    assert (problem.field, problem.related[0][0]) == ("data.tokenizer", "model.language.vocab_size")
    assert str(problem.related[0][2]) == "override"


def test_a_tokenizer_folder_without_a_tokenizer(run: Path) -> None:
    (run.parent / "tokenizer" / "tokenizer.json").write_text("{}")
    (problem,) = problems_of(run)
    assert problem.field == "data.tokenizer"
    assert problem.origin.line == line_of(run, "tokenizer:")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory):
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


def initial(run: Path, tiny, folder: Path, *overrides: str, shapes=None) -> tuple[list[Problem], list[str]]:
    """Problems and notes of starting weights, at the sizes of the tiny model."""
    config = json.loads((tiny.checkpoint / "config.json").read_text())["model"]["language"]
    sizes = [f"model.language.{name}={config[name]}" for name in ("vocab_size", "max_position_embeddings")]
    loaded = load_with_origins(run, [*sizes, f"checkpoint.initial={folder}", *overrides])
    return weight_check.find_problems(loaded.config, shapes or {})


def test_a_folder_that_fits(run: Path, tiny) -> None:
    assert initial(run, tiny, tiny.folder) == ([], [])


def test_a_folder_of_another_model(run: Path, tiny) -> None:
    (problem,), _ = initial(run, tiny, tiny.folder, "model.language.ffn_hidden_size=128")
    assert problem.field == "checkpoint.initial"
    assert "is (64, 32)" in problem.message and "needs (128, 32)" in problem.message


def test_a_folder_with_more_layers(run: Path, tiny) -> None:
    (problem,), _ = initial(run, tiny, tiny.folder, "model.language.num_layers=1")
    assert "Unexpected tensors" in problem.message


def test_every_wrong_tensor_is_counted(run: Path, tiny, tmp_path: Path) -> None:
    loaded = load_with_origins(run)
    folder = tmp_path / "other"
    shutil.copytree(tiny.folder, folder)
    reader = SafetensorsReader(tiny.folder)
    config = json.loads((tiny.checkpoint / "config.json").read_text())["model"]
    model = type(loaded.config.model).model_validate(config)
    tensors = {tensor.name: reader.read(tensor.name) for tensor in hf_tensors(model, LONG_VITA)}
    tensors = {name: data[:1] if name.endswith("layernorm.weight") else data for name, data in tensors.items()}
    shapes = [(name, tuple(data.shape), torch.float32) for name, data in tensors.items()]
    with ShardedWriter(folder, shapes, 1 << 30) as writer:
        for name, data in tensors.items():
            writer.write(name, data)
    (problem,), _ = initial(run, tiny, folder)
    assert problem.message.count("and the model needs") == 4 and "more" in problem.message


def test_a_training_checkpoint_that_fits_and_one_that_does_not(run: Path, tiny) -> None:
    key = "language_model.decoder.layers.mlp.linear_fc2.weight"
    assert initial(run, tiny, tiny.checkpoint, shapes={key: (2, 32, 64)}) == ([], [])
    wrong = {key: (2, 32, 128), "language_model.another.weight": (3,)}
    (problem,), _ = initial(run, tiny, tiny.checkpoint, shapes=wrong)
    assert f"{key} is (2, 32, 64)" in problem.message and "has no language_model.another.weight" in problem.message


def test_an_output_folder_of_another_run(run: Path, tiny) -> None:
    loaded = load_with_origins(run, ["seed=8"])
    folder = run.parent / "run" / "checkpoints" / "step_00000001"
    shutil.copytree(tiny.checkpoint, folder)
    (problem,), notes = weight_check.find_problems(loaded.config, {})
    assert "the run resumes from the checkpoints" in notes[0]
    assert problem.field == "output" and "holds weights alone" in problem.message
    common = torch.load(folder / "common.pt", weights_only=False)
    saved = dump(loaded.config) | {"seed": 7}
    saved["data"] = saved["data"] | {"dataset": {}}
    torch.save(common | {"run": {"config": saved}}, folder / "common.pt")
    manifest.write_manifest(folder, {})
    found = {problem.field: locate(problem, loaded) for problem in weight_check.find_problems(loaded.config, {})[0]}
    assert found.keys() == {"seed", "data.dataset"}
    assert str(found["seed"]).startswith(f"override: seed = 8: is 7 in the checkpoint {folder}")
    assert found["data.dataset"].origin.file == run and "checkpoint.initial=" in found["seed"].fix


def test_a_truncated_training_checkpoint(run: Path, tiny, tmp_path: Path) -> None:
    folder = tmp_path / "cut"
    shutil.copytree(tiny.checkpoint, folder)
    largest = max(folder.glob("*.distcp"), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-10])
    (problem,), _ = initial(run, tiny, folder)
    assert "bytes instead of" in problem.message


def test_a_path_that_does_not_exist_and_a_hub_id(run: Path, tiny) -> None:
    (problem,), _ = initial(run, tiny, Path("/nowhere/at/all"))
    assert problem.field == "checkpoint.initial"
    problems, notes = initial(run, tiny, Path("Some-Owner/Some-Model"))
    assert problems == [] and "Hub id" in notes[0]


def test_the_field_that_an_error_names() -> None:
    assert field_named_in("ValueError: layout.tensor_parallel 3 does not fit") == "layout.tensor_parallel"
    assert field_named_in("torch.nn.Linear in megatron.core.utils") == ""
