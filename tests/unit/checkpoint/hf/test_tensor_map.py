"""The maps between our parameters and Hugging Face tensors: order of rows, shards, coverage, errors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from longvita.checkpoint.errors import CheckpointError
from longvita.checkpoint.hf.tensor_map import HFTensor, Mapper, ParameterMap, TensorBlock, hf_tensors, parameter_names
from longvita.checkpoint.hf.tensor_names import INTERNVL, LONG_VITA, detect_names, part_of
from longvita.config.schema import LanguageConfig, ModelConfig, ProjectorConfig, VisionConfig

TINY = ModelConfig(
    vision=VisionConfig(
        num_layers=2, hidden_size=12, num_attention_heads=3, ffn_hidden_size=20, patch_size=7, image_size=28
    ),
    projector=ProjectorConfig(hidden_size=10),
    language=LanguageConfig(
        num_layers=3,
        hidden_size=16,
        ffn_hidden_size=24,
        num_attention_heads=8,
        num_query_groups=4,
        vocab_size=40,
        max_position_embeddings=128,
    ),
)
PUBLISHED_72B = ModelConfig(
    language=LanguageConfig(num_layers=80, hidden_size=8192, ffn_hidden_size=29568, num_attention_heads=64)
)


def assemble(item: ParameterMap, tensors: dict[str, Tensor]) -> Tensor:
    """The parameter that a map describes, from complete Hugging Face tensors."""
    out = torch.full(item.shape, float("nan"))
    for block in item.blocks:
        part = tensors[block.tensor].narrow(item.axis, block.start, block.length)
        out.narrow(item.axis, block.offset, block.length).copy_(part)
    return out


def numbered(mapper: Mapper, parameter: str) -> dict[str, Tensor]:
    """Tensors whose every element is different, so that order shows."""
    tensors, start = {}, 0
    for tensor in mapper.map(parameter).tensors.values():
        count = torch.Size(tensor.shape).numel()
        tensors[tensor.name] = torch.arange(start, start + count, dtype=torch.float32).reshape(tensor.shape)
        start += count
    return tensors


@pytest.mark.parametrize("kind", ["weight", "bias"])
@pytest.mark.parametrize("tp", [1, 2, 4])
def test_language_qkv_holds_each_groups_queries_then_key_then_value(tp: int, kind: str):
    name = f"language_model.decoder.layers.1.self_attention.linear_qkv.{kind}"
    tensors = numbered(Mapper(TINY, LONG_VITA), name)
    q, k, v = (tensors[f"model.layers.1.self_attn.{x}_proj.{kind}"] for x in "qkv")
    found = torch.cat([assemble(Mapper(TINY, LONG_VITA, rank, tp).map(name), tensors) for rank in range(tp)])
    # Megatron splits the rows as [groups, (queries a group + 2), head width].
    groups, per_group, head = 4, 2, 2
    split = found.reshape(groups, per_group + 2, head, *found.shape[1:])
    assert torch.equal(split[:, :per_group].reshape(q.shape), q)
    assert torch.equal(split[:, per_group].reshape(k.shape), k)
    assert torch.equal(split[:, per_group + 1].reshape(v.shape), v)


@pytest.mark.parametrize("names", [LONG_VITA, INTERNVL], ids=lambda names: names.title)
def test_vision_qkv_holds_each_heads_query_key_and_value(names):
    name = "vision_model.decoder.layers.0.self_attention.linear_qkv.weight"
    mapper = Mapper(TINY, names, 1, 2)  # the vision encoder is replicated on every TP rank
    tensors = numbered(mapper, name)
    heads, head, width = 3, 4, 12
    split = assemble(mapper.map(name), tensors).reshape(heads, 3, head, width)
    published = torch.cat(list(tensors.values()))  # q, then k, then v in both formats
    for i in range(3):
        assert torch.equal(split[:, i].reshape(width, width), published[i * width : (i + 1) * width])


def test_gate_and_up_are_halves_of_each_shard():
    name = "language_model.decoder.layers.0.mlp.linear_fc1.weight"
    tensors = numbered(Mapper(TINY, LONG_VITA), name)
    gate, up = tensors["model.layers.0.mlp.gate_proj.weight"], tensors["model.layers.0.mlp.up_proj.weight"]
    for rank in range(2):
        found = assemble(Mapper(TINY, LONG_VITA, rank, 2).map(name), tensors)
        assert torch.equal(found, torch.cat([gate.chunk(2)[rank], up.chunk(2)[rank]]))


@pytest.mark.parametrize(
    "module, tensor",
    [("self_attention.linear_proj", "self_attn.o_proj"), ("mlp.linear_fc2", "mlp.down_proj")],
)
def test_output_projections_are_split_by_columns(module: str, tensor: str):
    name = f"language_model.decoder.layers.2.{module}.weight"
    tensors = numbered(Mapper(TINY, LONG_VITA), name)
    complete = tensors[f"model.layers.2.{tensor}.weight"]
    for rank in range(2):
        found = assemble(Mapper(TINY, LONG_VITA, rank, 2).map(name), tensors)
        assert torch.equal(found, complete.chunk(2, dim=1)[rank])


@pytest.mark.parametrize("config, tp", [(TINY, 1), (TINY, 4), (ModelConfig(), 8), (PUBLISHED_72B, 8)])
@pytest.mark.parametrize("names", [LONG_VITA, INTERNVL], ids=lambda names: names.title)
def test_the_shards_of_all_ranks_cover_every_tensor_once(config: ModelConfig, tp: int, names):
    mappers = [Mapper(config, names, rank, tp) for rank in range(tp)]
    held: dict[str, set[tuple[int, int]]] = {}
    axes: dict[str, int] = {}
    for parameter in parameter_names(config):
        for mapper in mappers:
            item = mapper.map(parameter)
            for block in item.blocks:
                held.setdefault(block.tensor, set()).add((block.start, block.length))
                axes[block.tensor] = item.axis
    for tensor in hf_tensors(config, names):
        end = 0
        for start, length in sorted(held.pop(tensor.name, set())):
            assert start == end, tensor.name
            end += length
        size = tensor.shape[axes.get(tensor.name, 0)]
        assert end == size or (tensor.padded and end < size), tensor.name
    assert not held


def test_the_published_14b_model_has_the_published_number_of_parameters():
    tensors = hf_tensors(ModelConfig(), LONG_VITA)
    by_part: dict[str, int] = {}
    for tensor in tensors:
        by_part[tensor.part] = by_part.get(tensor.part, 0) + torch.Size(tensor.shape).numel()
    assert by_part["language"] == 14_770_033_664  # Qwen2.5-14B
    assert by_part["vision"] == 304_012_288  # InternViT-300M
    assert by_part["projector"] == 2 * 4096 + 4096 * 1024 + 1024 * 5120


def test_names_in_transformer_engine_layers_map_to_the_norms():
    mapper = Mapper(TINY, LONG_VITA)
    fused = mapper.map("language_model.decoder.layers.1.mlp.linear_fc1.layer_norm_weight")
    plain = mapper.map("language_model.decoder.layers.1.pre_mlp_layernorm.weight")
    assert fused.blocks == plain.blocks
    vision = mapper.map("vision_model.decoder.layers.1.self_attention.linear_qkv.layer_norm_bias")
    assert list(vision.tensors) == ["model.vision_model.encoder.layers.1.norm1.bias"]


def test_a_shorter_vocabulary_leaves_rows_to_fill():
    mappers = [Mapper(TINY, LONG_VITA, rank, 4, vocab_rows=13) for rank in range(4)]
    items = [mapper.map("language_model.embedding.word_embeddings.weight") for mapper in mappers]
    assert [item.mean_filled for item in items] == [0, 7, 10, 10]
    assert items[1].blocks == (TensorBlock("model.embed_tokens.weight", 10, 0, 3),)
    assert all(item.tensors["model.embed_tokens.weight"].shape == (13, 16) for item in items)


def test_a_longer_vocabulary_is_refused_with_both_numbers():
    with pytest.raises(CheckpointError, match=r"41 rows.*vocab_size is\s+40"):
        Mapper(TINY, LONG_VITA, vocab_rows=41)


def test_sizes_that_do_not_divide_over_tp_are_refused():
    with pytest.raises(CheckpointError, match=r"num_query_groups 4 is not a multiple of tensor_parallel 8"):
        Mapper(TINY, LONG_VITA, 0, 8)


def test_tied_embeddings_fill_the_output_layer():
    item = Mapper(TINY, LONG_VITA, 1, 2, tied=True).map("language_model.output_layer.weight")
    assert item.blocks == (TensorBlock("model.embed_tokens.weight", 20, 0, 20),)


def test_a_projector_wider_than_the_language_model_does_not_fit_internvl():
    wide = TINY.model_copy(update={"projector": ProjectorConfig(hidden_size=17)})
    Mapper(wide, LONG_VITA).map("vision_projection.linear_fc1.weight")
    with pytest.raises(CheckpointError, match=r"model.projector.hidden_size 17.*at most 16"):
        Mapper(wide, INTERNVL).map("vision_projection.linear_fc1.weight")


@pytest.mark.parametrize("name", ["language_model.nothing.weight", "vision_projection.linear_fc3.weight"])
def test_an_unknown_parameter_is_named(name: str):
    with pytest.raises(CheckpointError, match=name):
        Mapper(TINY, LONG_VITA).map(name)


@pytest.mark.parametrize(
    "blocks, shape, message",
    [
        ((TensorBlock("t", 0, 0, 4), TensorBlock("t", 4, 5, 3)), (8, 2), "does not start at 4"),
        ((TensorBlock("t", 0, 0, 4), TensorBlock("t", 4, 3, 3)), (7, 2), "does not start at 4"),
        ((TensorBlock("t", 6, 0, 4),), (4, 2), "is not inside t"),
        ((TensorBlock("t", 0, 0, 4),), (5, 2), "blocks cover 4"),
        ((TensorBlock("t", 0, 0, 4),), (4, 3), "cannot come from t"),
        ((TensorBlock("t", 0, 0, 0),), (0, 2), "does not start at 0"),
    ],
)
def test_a_map_checks_itself(blocks, shape, message):
    with pytest.raises(CheckpointError, match=message):
        ParameterMap("p", shape, 0, blocks, {"t": HFTensor("t", (8, 2), "language")})


@pytest.mark.parametrize(
    "tensors, parts",
    [
        (["model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight"], {"language"}),
        (["embeddings.class_embedding", "encoder.layers.0.ls1"], {"vision"}),
        (["vision_model.embeddings.class_embedding", "language_model.model.layers.0.x"], {"vision", "language"}),
        (["model.vision_tower.embeddings.cls_token", "model.language_model.layers.0.x"], {"vision", "language"}),
        (["model.vision_projection.mlp.0.weight"], {"projector"}),
        (["vision_tower.encoder.layer.3.lambda_1"], {"vision"}),
        (["something.else"], set()),
    ],
)
def test_parts_are_recognised_by_their_names(tensors: list[str], parts: set[str]):
    names = detect_names(tensors, "x")
    assert {part for part in ("vision", "projector", "language") if getattr(names, part)} == parts


def test_every_tensor_of_a_format_belongs_to_its_part():
    for names in (LONG_VITA, INTERNVL):
        for tensor in hf_tensors(TINY, names):
            assert part_of(tensor.name, names) == tensor.part
    assert part_of("model.vision_model.unknown", LONG_VITA) == "vision"
    assert part_of("optimizer.state", LONG_VITA) is None
