"""Exports and foreign folders against transformers' own models and processors, without remote code."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import (
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    InternVLProcessor,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from longvita.checkpoint.hf.config_json import model_config_from_folder, read_json
from longvita.checkpoint.hf.internvl import write_internvl_files
from longvita.config.schema import ModelConfig
from longvita.data.chat_template import ChatTemplate
from longvita.data.media.image import Grid, tile_image
from longvita.data.sample import Turn
from longvita.data.tokenizer import load_tokenizer, load_transformers_tokenizer
from tests.distributed.helpers import run_distributed
from tests.parity.exported import VOCABULARY, export, logits_from, tiny_config
from tests.parity.intern_vit import InternViT
from tests.qwen_tokenizer import qwen_tokenizer_folder

TOLERANCE = 2e-5
ROWS = 4  # tokens a tile of the tiny model


@pytest.fixture(scope="module")
def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids [t] without the picture token, tiles [3, 3, 28, 28] and their positions."""
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(0, 250, (60,), generator=generator)
    return ids, torch.randn(3, 3, 28, 28, generator=generator), torch.tensor([3, 8, 40])


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, inputs) -> tuple[Path, torch.Tensor]:
    """The folder with both exports, and our logits."""
    folder = tmp_path_factory.mktemp("exported")
    (logits,) = run_distributed(export, 1, str(folder), {}, *inputs)
    return folder, logits


def with_picture_tokens(ids: torch.Tensor, starts: torch.Tensor, token: int) -> torch.Tensor:
    ids = ids.clone()
    for start in starts.tolist():
        ids[start : start + ROWS] = token
    return ids


def test_the_native_export_computes_our_logits(exported, inputs):
    folder, ours = exported
    model = AutoModelForImageTextToText.from_pretrained(folder / "internvl", dtype=torch.float32).eval()
    assert type(model).__name__ == "InternVLForConditionalGeneration"
    ids = with_picture_tokens(inputs[0], inputs[2], model.config.image_token_id)
    with torch.no_grad():
        theirs = model(input_ids=ids[None], pixel_values=inputs[1]).logits[0]
    assert (theirs - ours).abs().max() < TOLERANCE
    assert ours.std() > 0.1, "the model must not be so small that everything agrees"


def test_heads_wider_than_the_hidden_size(tmp_path: Path, inputs):
    """Query heads that together are wider than a hidden state, out to transformers and back."""
    wide = {"kv_channels": 12}
    (ours,) = run_distributed(export, 1, str(tmp_path), wide, *inputs)
    for name in ("long_vita", "internvl"):
        assert model_config_from_folder(tmp_path / name).language == tiny_config(**wide).model.language
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "internvl", dtype=torch.float32).eval()
    ids = with_picture_tokens(inputs[0], inputs[2], model.config.image_token_id)
    with torch.no_grad():
        theirs = model(input_ids=ids[None], pixel_values=inputs[1]).logits[0]
    assert (theirs - ours).abs().max() < TOLERANCE
    (found,) = run_distributed(
        logits_from, 1, {"vision+projector+language": str(tmp_path / "long_vita")}, wide, *inputs
    )
    assert torch.equal(found["logits"], ours)


def test_the_native_export_generates(exported):
    folder, _ = exported
    model = AutoModelForImageTextToText.from_pretrained(folder / "internvl").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "internvl")
    assert model.generation_config.eos_token_id == tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Name the digit."}], add_generation_prompt=True, return_tensors="pt"
    )
    found = model.generate(**prompt, max_new_tokens=3)
    assert found.shape[1] > prompt["input_ids"].shape[1]


@pytest.mark.parametrize("name", ["long_vita", "internvl"])
def test_an_export_read_back_computes_identical_logits(exported, inputs, name: str):
    folder, ours = exported
    source = {"vision+projector+language": str(folder / name)}
    (found,) = run_distributed(logits_from, 1, source, {}, *inputs)
    assert torch.equal(found["logits"], ours)


@pytest.mark.parametrize("form", ["as it saves", "as its modules"])
def test_what_transformers_saves_is_read(exported, inputs, tmp_path: Path, form: str):
    """A native folder that went through transformers, under either form of its names."""
    folder, ours = exported
    model = AutoModelForImageTextToText.from_pretrained(folder / "internvl")
    if form == "as it saves":
        model.save_pretrained(tmp_path)
    else:
        model.config.save_pretrained(tmp_path)
        tensors = {name: value.clone() for name, value in model.state_dict().items()}
        assert "model.language_model.norm.weight" in tensors
        save_file(tensors, tmp_path / "model.safetensors")
    assert model_config_from_folder(tmp_path).projector == tiny_config().model.projector
    source = {"vision+projector+language": str(tmp_path)}
    (found,) = run_distributed(logits_from, 1, source, {}, *inputs)
    assert torch.equal(found["logits"], ours)


def test_a_long_vita_export_is_a_complete_folder(exported):
    folder = exported[0] / "long_vita"
    names = {path.name for path in folder.iterdir()}
    assert names >= {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    }
    tokenizer = load_tokenizer(folder)
    assert tokenizer.vocab_size <= VOCABULARY
    assert tokenizer.id_of("<IMG_CONTEXT>") == load_tokenizer(exported[0] / "tokenizer").id_of("<IMG_CONTEXT>")


def test_qwen2_folders_written_by_transformers_are_read(tmp_path: Path, inputs):
    """Shorter vocabulary than ours; the next-token scores of the known tokens must be transformers' own."""
    language = tiny_config().model.language
    config = Qwen2Config(
        vocab_size=300,
        hidden_size=language.hidden_size,
        intermediate_size=language.ffn_hidden_size,
        num_hidden_layers=language.num_layers,
        num_attention_heads=language.num_attention_heads,
        num_key_value_heads=language.num_query_groups,
        max_position_embeddings=1024,
        rope_theta=1000000.0,
        rms_norm_eps=1e-6,
        initializer_range=0.2,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    with torch.no_grad():
        theirs = model(input_ids=inputs[0][None]).logits[0]
    none = torch.zeros(0, 3, 28, 28), torch.zeros(0, dtype=torch.int64)
    (found,) = run_distributed(logits_from, 1, {"language": str(tmp_path)}, {}, inputs[0], *none)
    assert (found["logits"][:, :300] - theirs).abs().max() < TOLERANCE
    assert theirs.std() > 0.1


@pytest.mark.parametrize("prefix", ["", "vision_model."])
def test_intern_vit_folders_are_read(tmp_path: Path, inputs, prefix: str):
    """InternViT alone, and inside an InternVL 2 folder, against an encoder written in plain torch."""
    torch.manual_seed(1)
    encoder = InternViT(tiny_config().model.vision).eval()
    tensors = {prefix + name: value.clone() for name, value in encoder.state_dict().items()}
    if prefix:
        tensors |= {
            "mlp1.0.weight": torch.zeros(3),
            "language_model.model.layers.0.input_layernorm.weight": torch.ones(4),
        }
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "intern_vit_6b"}))
    with torch.no_grad():
        theirs = encoder(inputs[1])
    (found,) = run_distributed(logits_from, 1, {"vision": str(tmp_path)}, {}, *inputs)
    assert (found["hidden"] - theirs).abs().max() < TOLERANCE
    assert theirs.std() > 0.1


# ---- the processor


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An InternVL folder of the published 14B model, all but its weights."""
    folder = tmp_path_factory.mktemp("published")
    write_internvl_files(ModelConfig(), folder, load_transformers_tokenizer(qwen_tokenizer_folder()), "bfloat16")
    return folder


@pytest.fixture(scope="module")
def processor(published: Path) -> InternVLProcessor:
    """AutoProcessor's.

    Its video half needs torchvision, which has no build for the CPU wheel of torch that tests run with; without it the
    pictures' and the text's halves are loaded, by the same code.
    """
    with pytest.MonkeyPatch.context() as patch:
        try:
            import torchvision  # noqa: F401
        except (ImportError, RuntimeError):
            halves = ["image_processor", "tokenizer"]
            patch.setattr(InternVLProcessor, "get_attributes", classmethod(lambda _: halves))
        found = AutoProcessor.from_pretrained(published)
    # Without torchvision this is what AutoProcessor has chosen; with it, pixels may be off by two grey levels.
    found.image_processor = AutoImageProcessor.from_pretrained(published, backend="pil")
    return found


@pytest.fixture(scope="module")
def template() -> ChatTemplate:
    return ChatTemplate(load_tokenizer(qwen_tokenizer_folder()), tokens_per_tile=256)


def picture(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize(
    "parts, text",
    [
        ([{"type": "image"}, {"type": "text", "text": "What is this? 12"}], "<image>\nWhat is this? 12"),
        ([{"type": "image"}, {"type": "text", "text": "\nWhat is this?"}], "<image>\nWhat is this?"),
        ([{"type": "text", "text": "Look: "}, {"type": "image"}], "Look: <image>"),
        (
            [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "Which is 大?"}],
            "<image>\n<image>\nWhich is 大?",
        ),
        ("<image>\nIn a string", "<image>\nIn a string"),
    ],
)
def test_pictures_of_one_tile_make_our_prompt_and_our_pixels(processor, template, parts, text: str):
    pictures = [picture(500, 430), picture(300, 290)][: text.count("<image>")]
    tiled = [tile_image(one) for one in pictures]
    assert all((one.columns, one.rows) == (1, 1) for one in tiled)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": parts}]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
    found = processor(images=pictures, text=prompt, return_tensors="pt")
    ours = template.encode_prompt([Turn("system", "Be brief."), Turn("user", text)], [Grid(1, 1)] * len(pictures), [])
    assert found["input_ids"][0].tolist() == ours.input_ids.tolist()
    assert torch.equal(found["pixel_values"], torch.cat([one.tiles for one in tiled]))


def test_several_turns_make_our_prompt(processor, template):
    turns = [("user", "One?"), ("assistant", "Two."), ("user", "Three?")]
    messages = [{"role": role, "content": text} for role, text in turns]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
    ours = template.encode_prompt([Turn(*turn) for turn in turns], [], [])
    assert processor.tokenizer(prompt)["input_ids"] == ours.input_ids.tolist()
    assert "system" not in prompt


def test_the_files_of_the_folder(published: Path):
    tokenizer = read_json(published / "tokenizer_config.json")
    assert tokenizer["extra_special_tokens"] == {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    assert read_json(published / "config.json")["image_token_id"] == 151667
    assert read_json(published / "generation_config.json")["eos_token_id"] == [151645, 151643]
    assert read_json(published / "processor_config.json") == {
        "processor_class": "InternVLProcessor",
        "image_seq_length": 256,
    }
    video = read_json(published / "video_preprocessor_config.json")
    picture_settings = read_json(published / "preprocessor_config.json")
    assert picture_settings["crop_to_patches"] is False
    for key in ("size", "image_mean", "image_std", "resample"):
        assert video[key] == picture_settings[key]
