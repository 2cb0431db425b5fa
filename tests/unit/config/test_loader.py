"""Files, includes, overrides, and the errors of single fields."""

from __future__ import annotations

import pytest

from longvita.config import Config, ConfigError, dump, load, load_with_origins, to_yaml
from longvita.config.loader import split_name
from longvita.data.mix.missing_files import find_training_problems


def error(path, *overrides, checks=()) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path, list(overrides), checks)
    return str(caught.value)


@pytest.mark.parametrize(
    "text, value",
    [("1e-5", 1e-5), ("1E-5", 1e-5), ("1.5e3", 1500.0), ("3", 3.0), ("1_000.5", 1000.5), (".5", 0.5), ("+2.", 2.0)],
)
def test_floats_as_people_write_them(write_yaml, text, value):
    assert load(write_yaml(f"optimizer: {{lr: {text}}}")).optimizer.lr == value


@pytest.mark.parametrize("text, value", [("1_048_576", 1048576), ("0512", 512), ("+64", 64)])
def test_ints_as_people_write_them(write_yaml, text, value):
    path = write_yaml(f"training: {{train_iterations: {text}}}")
    assert load(path).training.train_iterations == value


@pytest.mark.parametrize("text", ["on", "2026-11-24", "1:30", "0x1f", "no"])
def test_text_stays_text(write_yaml, text):
    assert load(write_yaml(f"name: {text}")).name == text


def test_a_tilde_is_the_home_folder(write_yaml, monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    data = "data: {media_root: '~', dataset: {a: {data_paths: [~/a.jsonl, b~]}}}"
    path = write_yaml(f"output: ~/runs\ncheckpoint: {{initial: ~/a}}\n{data}")
    config = load(path, ["data.tokenizer=~/words"])
    assert (config.output, config.checkpoint.initial) == ("/home/someone/runs", "/home/someone/a")
    assert (config.data.media_root, config.data.tokenizer) == ("/home/someone", "/home/someone/words")
    assert config.data.dataset["a"].data_paths == ["/home/someone/a.jsonl", "b~"]


def test_an_empty_file_is_the_defaults(write_yaml):
    assert load(write_yaml("")) == Config()


def test_includes_are_relative_and_later_ones_win(write_yaml):
    write_yaml("optimizer: {lr: 1e-3, min_lr: 1e-5}\nname: model", "model/a.yaml")
    write_yaml("include: ../model/a.yaml\noptimizer: {lr: 2e-3}", "parts/b.yaml")
    write_yaml("optimizer: {weight_decay: 0.5}\nname: c", "parts/c.yaml")
    config = load(write_yaml("include: [parts/b.yaml, parts/c.yaml]\noptimizer: {clip_grad: 2.0}"))
    assert (config.optimizer.lr, config.optimizer.min_lr, config.optimizer.weight_decay) == (2e-3, 1e-5, 0.5)
    assert (config.optimizer.clip_grad, config.name) == (2.0, "c")


def test_lists_are_replaced_not_joined(write_yaml):
    write_yaml("training: {trainable: [projector, language]}", "a.yaml")
    assert load(write_yaml("include: a.yaml\ntraining: {trainable: [vision]}")).training.trainable == ["vision"]


def test_a_file_may_be_included_twice_on_different_ways(write_yaml):
    write_yaml("name: a", "a.yaml")
    write_yaml("include: a.yaml\nseed: 3", "b.yaml")
    assert load(write_yaml("include: [b.yaml, a.yaml]")).seed == 3


def test_overrides(write_yaml):
    path = write_yaml("optimizer: {lr: 1e-3}\ndata: {dataset: {a.b: {ratio: 1, data_paths: [x.jsonl]}}}")
    overrides = [
        "optimizer.lr=5e-4",
        "training.trainable=[vision]",
        "checkpoint.initial=",
        "layout.processes=null",
        'data.dataset."a.b".ratio=0.5',
        "name=x=y",
    ]
    config = load(path, overrides)
    assert config.optimizer.lr == 5e-4
    assert config.training.trainable == ["vision"]
    assert config.checkpoint.initial is None
    assert config.data.dataset["a.b"].ratio == 0.5
    assert config.data.dataset["a.b"].data_paths == ["x.jsonl"]
    assert config.name == "x=y"


def test_an_override_with_a_section_replaces_it(write_yaml):
    path = write_yaml("data: {dataset: {old: {data_paths: [x.jsonl]}}}")
    config = load(path, ["data.dataset={new: {data_paths: [y.jsonl]}}"])
    assert list(config.data.dataset) == ["new"]


@pytest.mark.parametrize("text", ["optimizer.lr", "=3", "optimizer..lr=3", ".lr=3", "optimizer.=3"])
def test_what_is_not_an_override(write_yaml, text):
    assert "is not an override" in error(write_yaml(""), text)
    assert "section.field=value" in error(write_yaml(""), text)


def test_an_override_with_broken_yaml(write_yaml):
    assert "override" in error(write_yaml(""), "training.trainable=[vision")
    assert "is not valid YAML" in error(write_yaml(""), "training.trainable=[vision")


def test_split_name():
    assert split_name('data.dataset."a.b/c".ratio') == ("data", "dataset", "a.b/c", "ratio")
    assert split_name("a..b") == ()


def test_a_mix_of_the_published_form(write_yaml):
    write_yaml("dataset:\n  A:\n    ratio: 0.1\n    num: 999999999\n    data_paths: [a.jsonl, b.jsonl]", "mix.yaml")
    config = load(write_yaml("include: mix.yaml"))
    assert config.data.dataset["A"].ratio == 0.1
    assert config.data.dataset["A"].data_paths == ["a.jsonl", "b.jsonl"]


def test_sources(write_yaml):
    model = write_yaml("model:\n  language:\n    num_layers: 4\n", "model.yaml")
    path = write_yaml("include: model.yaml\noptimizer:\n  lr: 1e-3\n  min_lr: 1e-4\n")
    loaded = load_with_origins(path, ["optimizer.min_lr=1e-5"])
    assert str(loaded.origin("model.language.num_layers")) == f"{model}:3"
    assert str(loaded.origin("optimizer.lr")) == f"{path}:3"
    assert str(loaded.origin("optimizer.min_lr")) == "override"
    assert str(loaded.origin("optimizer.clip_grad")) == "default"


def test_dump_and_yaml_come_back(write_yaml, repository):
    config = load(repository / "configs/train/stage2_general.yaml", ["layout.processes=8"])
    assert Config.model_validate(dump(config)) == config
    assert load(write_yaml(to_yaml(config))) == config


def test_an_unknown_name_in_a_section(write_yaml):
    path = write_yaml("training:\n  precision: bf16\n  train_iters: 5\n")
    text = error(path)
    assert f"{path}:3: training.train_iters = 5: this name is not known" in text
    assert "did you mean training.train_iterations?" in text


def test_an_unknown_name_that_belongs_elsewhere(write_yaml):
    assert "did you mean optimizer.lr?" in error(write_yaml("training: {lr: 1e-3}"))
    assert "did you mean layout.tensor_parallel?" in error(write_yaml("tensor_parallel: 2"))


def test_an_unknown_name_far_from_all(write_yaml):
    assert "known in checkpoint: initial, initial_language" in error(write_yaml("checkpoint: {zzz: 1}"))


def test_an_unknown_name_in_an_override(write_yaml):
    text = error(write_yaml(""), "optimizer.lrr=1e-3")
    assert "override: optimizer.lrr = 0.001" in text
    assert "did you mean optimizer.lr?" in text


def test_an_unknown_name_in_a_data_source(write_yaml):
    text = error(write_yaml("data: {dataset: {A: {data_path: [x.jsonl]}}}"))
    assert "did you mean data.dataset.A.data_paths?" in text
    assert "data.dataset.A.data_paths: must be given" in text


@pytest.mark.parametrize(
    "text, words, fix",
    [
        ("training: {micro_batch_size: 2.0}", "must be int, and this is a float", "write 2"),
        ("training: {micro_batch_size: two}", "must be int, and this is text", ""),
        ("training: {micro_batch_size: true}", "must be int, and this is true or false", ""),
        ('optimizer: {lr: "1e-3"}', "must be float, and this is text", "write 1e-3 without quotes"),
        ("layout: {sequence_parallel: yes}", "must be true or false, and this is text", "write true"),
        ("layout: {sequence_parallel: 1}", "must be true or false, and this is an int", ""),
        ("training: {trainable: vision}", "must be list of", "write it as a list: [vision]"),
        ("name:", "must be text, and this is null", "remove the line for the default"),
        ("optimizer: [1]", "must be a section", "known in it: lr, min_lr"),
        ("optimizer: {lr: .inf}", "must be a finite number", ""),
        ("optimizer: {lr: 0}", "optimizer.lr = 0: must be greater than 0", ""),
        ("optimizer: {adam_beta1: 1.0}", "must be less than 1", ""),
        ("training: {precision: fp16}", "must be one of bf16, fp32", "did you mean"),
        ("training: {trainable: [vision, projecter]}", "must be one of vision", "did you mean projector?"),
        ("training: {trainable: []}", "at least 1 item", ""),
        ("checkpoint: {initial: 3}", "must be text or null, and this is an int", ""),
    ],
)
def test_wrong_values(write_yaml, text, words, fix):
    message = error(write_yaml(text))
    assert "config.yaml:1: " in message
    assert words in message
    assert fix in message


def test_all_problems_at_once_in_the_file_s_order(write_yaml):
    text = error(write_yaml("layout: {tp: 2}\noptimizer: {lr: x}\ntraining:\n  precision: int8\n"))
    lines = [line.split(": ")[0].rsplit(":", 1)[1] for line in text.splitlines() if not line.startswith(" ")]
    assert lines == ["1", "2", "4"]


def test_a_name_twice_in_a_section(write_yaml):
    path = write_yaml("optimizer:\n  lr: 1e-3\n  clip_grad: 1.0\n  lr: 1e-4\n")
    assert f"{path}:4: lr: occurs twice in one section, first in line 2" in error(path)


def test_broken_yaml_has_its_line(write_yaml):
    path = write_yaml("optimizer:\n  lr: 1e-3\n bad\n")
    assert f"{path}:" in error(path)
    assert "is not valid YAML" in error(path)


@pytest.mark.parametrize(
    "text, words",
    [
        ("- 1\n- 2", "`name: value` lines"),
        ("data: {dataset: {3: {data_paths: [x]}}}", "a name must be text"),
        ("a: &x\n  b: *x", "alias contains itself"),
        ("include: 3", "must be a list of files"),
        ("name: !!python/object:os.system x", "is not valid YAML"),
    ],
)
def test_files_of_the_wrong_shape(write_yaml, text, words):
    assert words in error(write_yaml(text))


def test_anchors_and_merge_keys(write_yaml):
    text = "optimizer: &o {lr: 1e-3}\ndata:\n  dataset:\n    A: &a {ratio: 0.5, data_paths: [x]}\n"
    config = load(write_yaml(text + "    B:\n      <<: *a\n      ratio: 0.25\n"))
    assert config.data.dataset["B"].ratio == 0.25
    assert config.data.dataset["B"].data_paths == ["x"]


def test_a_missing_file_names_the_nearest(write_yaml):
    path = write_yaml("", "stage2_general.yaml")
    text = error(path.parent / "stage2_genral.yaml")
    assert "there is no file" in text
    assert "did you mean" in text
    assert "stage2_general.yaml" in text


def test_a_missing_include_has_its_line(write_yaml):
    write_yaml("", "model.yaml")
    path = write_yaml("name: a\ninclude:\n  - modle.yaml\n")
    text = error(path)
    assert f"{path}:3: include = modle.yaml" in text
    assert "model.yaml?" in text


def test_includes_in_a_circle(write_yaml):
    write_yaml("include: b.yaml", "a.yaml")
    path = write_yaml("include: a.yaml", "b.yaml")
    assert "include each other" in error(path)


def test_a_binary_file(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    assert "not a text file" in error(path)


def test_training_asks_for_data_and_tokenizer(write_yaml, tmp_path):
    path = write_yaml("name: x")
    assert "no training data" in error(path, checks=[find_training_problems])
    assert "no tokenizer" in error(path, checks=[find_training_problems])
    text = error(
        path,
        "data.dataset={A: {data_paths: [a.jsonl, b.jsonl]}, B: {ratio: 0, data_paths: [c.jsonl]}}",
        f"data.data_root={tmp_path}",
        "data.tokenizer=nowhere",
        checks=[find_training_problems],
    )
    assert f"there is no file {tmp_path / 'a.jsonl'} (and 1 more of this source)" in text
    assert "data.tokenizer = nowhere: there is no such folder" in text
    assert "c.jsonl" not in text
    (tmp_path / "a.jsonl").write_text("{}")
    overrides = [f"data.data_root={tmp_path}", f"data.tokenizer={tmp_path}"]
    config = load(path, ["data.dataset={A: {data_paths: [a.jsonl]}}", *overrides], [find_training_problems])
    assert config.data.dataset["A"].ratio == 1
