"""Runs of the Ascend platform over stubs. MindSpeed must precede every import of megatron-core."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.distributed.platforms.shared_runs import fresh_state, step, stop_and_resume


def active_platform(source: str | None = None) -> Any:
    """The active platform over the stubs, or over MindSpeed's own source at `source`."""
    from tests.stubs import ascend_platform

    platform = ascend_platform.platform(source)
    platform.activate()
    return platform


def step_at_each_layout(
    rank: int, size: int, layouts: list[dict[str, Any]], source: str | None = None
) -> list[dict[str, Any]]:
    """Loss, gradients and two optimizer steps of the mixed packed batch, at each layout."""
    platform = active_platform(source)
    return [step(platform, sections) for sections in layouts]


def stopped_and_resumed(
    rank: int, size: int, runs: list[tuple[str, dict[str, Any]]], folder: str, source: str | None = None
) -> list[dict[str, Any]]:
    """Runs of a precision and a layout, stopped after two steps: the next steps with and without a resume."""
    platform = active_platform(source)
    return [stop_and_resume(platform, *run, Path(folder) / str(index)) for index, run in enumerate(runs)]


def facts_of_activation(rank: int, size: int, source: str | None = None) -> dict[str, Any]:
    """The command line, MindSpeed's arguments and the patches after an activation."""
    import sys

    sys.argv = ["longvita", "train", "config.yaml", "--context-parallel-size", "2"]
    platform = active_platform(source)
    from megatron.core.extensions import transformer_engine
    from mindspeed.args_utils import get_full_args

    from tests.distributed.mixed_batch import tiny_config

    at_import = dict(vars(get_full_args()))
    platform.configure(tiny_config())
    return {
        "argv": list(sys.argv),
        "arguments_at_import": at_import,
        "arguments": {name: value for name, value in vars(get_full_args()).items() if not name.startswith("_")},
        "have_te": transformer_engine.HAVE_TE,
        "again": [one.target for one in platform.activate()],
        "decisions": platform.decisions(),
    }


def output_of_activation(rank: int, size: int, source: str | None = None) -> dict[str, Any]:
    """What the process prints to stdout while the platform is activated and configured, and its logging around that."""
    import logging
    import os
    import sys
    import tempfile

    root = logging.getLogger()
    root.addHandler(logging.NullHandler())
    before = (list(map(str, root.handlers)), root.level)
    with tempfile.TemporaryFile() as output:
        stdout = os.dup(1)
        os.dup2(output.fileno(), 1)
        try:
            platform = active_platform(source)
            from tests.distributed.mixed_batch import tiny_config

            platform.build_groups(tiny_config()).destroy()
            logging.getLogger("mindspeed.megatron_adaptor").info("after the activation")
            sys.stdout.flush()
        finally:
            os.dup2(stdout, 1)
        output.seek(0)
        printed = output.read().decode()
    return {"printed": printed, "before": before, "after": (list(map(str, root.handlers)), root.level)}


def linear_layers(rank: int, size: int, trainable: list[str], source: str | None = None) -> dict[str, Any]:
    """What the linear layers of a decoder layer keep at TP `size` with sequence parallelism.

    buffer: bytes in Megatron's global memory buffer after a column-parallel layer. gathered: bytes of its rows on all
    TP ranks. keeps_input: whether a row-parallel layer keeps its input for the backward pass.
    """
    import torch

    platform = active_platform(source)
    from megatron.core import parallel_state

    from tests.distributed.mixed_batch import tiny_config

    layout = {"tensor_parallel": size, "sequence_parallel": True}
    state = fresh_state(platform, tiny_config(layout=layout, training={"trainable": trainable}))
    layer = state.models[0].language_model.decoder.layers[0]
    hidden = torch.randn(4, 1, layer.config.hidden_size, requires_grad=True)
    layer.self_attention.linear_qkv(hidden)
    buffers = parallel_state.get_global_memory_buffer().buffer.values()
    inner = torch.randn(4 * size, 1, layer.config.ffn_hidden_size // size, requires_grad=True)
    kept: list[int] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layer.mlp.linear_fc2(inner)
    found = {
        "buffer": sum(one.nbytes for one in buffers),
        "gathered": hidden.nbytes * size,
        "keeps_input": inner.data_ptr() in kept,
    }
    state.groups.destroy()
    return found


def too_late(rank: int, size: int, source: str | None = None) -> str:
    """The error of a platform that is activated after an import of megatron-core."""
    import megatron.core.transformer  # noqa: F401

    from longvita.platforms.base import PlatformError

    try:
        active_platform(source)
    except PlatformError as error:
        return str(error)
    return "no error"


def configs_under_context_parallelism(rank: int, size: int, source: str | None = None) -> dict[str, Any]:
    """Fields of the vision tower's config, the language model's, and one that sets none of them."""
    import torch

    platform = active_platform(source)
    from megatron.core.transformer.transformer_config import TransformerConfig
    from mindspeed.args_utils import get_full_args

    from longvita.model.transformer_config import language_transformer_config, vision_transformer_config
    from tests.distributed.mixed_batch import tiny_config

    config = tiny_config(layout={"context_parallel": 2})
    groups = platform.build_groups(config)
    # As Megatron's own command line would set them.
    args = get_full_args()
    args.normalization, args.num_query_groups = "RMSNorm", 1
    fields = ("context_parallel_size", "normalization", "num_query_groups", "num_attention_heads")
    careless = TransformerConfig(num_layers=1, hidden_size=16, num_attention_heads=2, pipeline_dtype=torch.float32)
    found = {
        "careless": careless,
        "vision": vision_transformer_config(config, platform),
        "language": language_transformer_config(config, platform),
    }
    ring = (groups.cp_ring.size(), groups.cp_ulysses.size())
    groups.destroy()
    return {name: {field: getattr(one, field) for field in fields} for name, one in found.items()} | {"ring": ring}


def mask_types(rank: int, size: int, source: str | None = None) -> dict[str, Any]:
    """For each mask type our attention's error, and whether MindSpeed's own attends to later tokens."""
    import torch

    platform = active_platform(source)
    from megatron.core.packed_seq_params import PackedSeqParams
    from megatron.core.transformer.enums import AttnMaskType

    from longvita.model.transformer_config import language_transformer_config
    from longvita.platforms.base import PlatformError
    from longvita.platforms.npu.layers import DocumentAttention
    from tests.distributed.mixed_batch import tiny_config

    config = tiny_config()
    groups = platform.build_groups(config)
    transformer = language_transformer_config(config, platform)
    from megatron.core.extensions.transformer_engine import TEDotProductAttention

    q, k, v = torch.randn(6, 4, 8), torch.randn(6, 2, 8), torch.randn(6, 2, 8)
    bounds = torch.tensor([0, 6], dtype=torch.int32)
    packed = PackedSeqParams(qkv_format="thd", cu_seqlens_q=bounds, cu_seqlens_kv=bounds)
    found = {}
    for mask in AttnMaskType:
        try:
            DocumentAttention(transformer, 1, mask, "self")
            error = ""
        except PlatformError as refused:
            error = str(refused)
        theirs = TEDotProductAttention(config=transformer, layer_number=1, attn_mask_type=mask, attention_type="self")
        outs = [
            theirs(q, k, value, None, attn_mask_type=mask, packed_seq_params=packed)
            for value in (v, v + torch.tensor([0.0] * 5 + [1.0])[:, None, None])
        ]
        found[mask.name] = (error, not torch.equal(outs[0].flatten(1)[0], outs[1].flatten(1)[0]))
    groups.destroy()
    return found


def save_and_convert(
    rank: int, size: int, folder: str, layout: dict[str, Any], source: str | None = None
) -> dict[str, Any]:
    """Save a run, convert its checkpoint to the format that all platforms load, and take two more steps."""
    platform = active_platform(source)
    from longvita.checkpoint.errors import CheckpointError
    from longvita.checkpoint.load import load_state
    from longvita.checkpoint.resume import newest_intact
    from longvita.checkpoint.step_folders import checkpoint_root
    from longvita.convert.optimizer_format import resave
    from tests.distributed.training_runs import run_config, run_steps

    root = Path(folder)
    config = run_config(layout, training={"precision": "fp32"})
    state = fresh_state(platform, config)
    run_steps(state, 2)
    _save(state, root / "ascend")
    after = run_steps(state, 2)
    resave(root / "ascend", root / "for_all", "fully_reshardable", config, state.groups, platform)
    newest = newest_intact(checkpoint_root(root / "for_all"))
    try:
        load_state(state, newest)
        error = ""
    except CheckpointError as refused:
        error = str(refused)
    return {"after": after, "error": error}


def _save(state: Any, output: Path) -> None:
    from longvita.checkpoint.save import Checkpointer
    from longvita.checkpoint.step_folders import checkpoint_root

    root = checkpoint_root(output)
    root.mkdir(parents=True, exist_ok=True)
    checkpointer = Checkpointer(root, keep=1, platform=state.platform)
    checkpointer.save(state)
    checkpointer.poll(wait=True)


def resume_on_cpu(rank: int, size: int, folder: str, layout: dict[str, Any]) -> dict[str, Any]:
    """Resume from the converted checkpoint on the CPU platform, and save a checkpoint there."""
    from longvita.checkpoint.errors import CheckpointError
    from longvita.checkpoint.load import load_state
    from longvita.checkpoint.resume import newest_intact
    from longvita.checkpoint.step_folders import checkpoint_root
    from tests.distributed.training_runs import run_config, run_steps, start

    root = Path(folder)
    state = start(run_config(layout, training={"precision": "fp32"}))
    try:
        load_state(state, newest_intact(checkpoint_root(root / "ascend")))
        error = ""
    except CheckpointError as refused:
        error = str(refused)
    load_state(state, newest_intact(checkpoint_root(root / "for_all")))
    _save(state, root / "cpu")
    return {"after": run_steps(state, 2), "error": error}


def resume_from_cpu(
    rank: int, size: int, folder: str, layout: dict[str, Any], source: str | None = None
) -> list[tuple[float, float]]:
    """Resume on the Ascend platform from the CPU platform's checkpoint, converted to its own format."""
    platform = active_platform(source)
    from longvita.checkpoint.load import load_state
    from longvita.checkpoint.resume import newest_intact
    from longvita.checkpoint.step_folders import checkpoint_root
    from longvita.convert.optimizer_format import resave
    from tests.distributed.training_runs import run_config, run_steps

    root = Path(folder)
    config = run_config(layout, training={"precision": "fp32"})
    state = fresh_state(platform, config)
    resave(root / "cpu", root / "back", platform.optimizer_sharding_type, config, state.groups, platform)
    load_state(state, newest_intact(checkpoint_root(root / "back")))
    return run_steps(state, 2)


def resumed_with_another_commit(
    rank: int, size: int, folder: str, layout: dict[str, Any], source: str | None = None
) -> dict[str, Any]:
    """A run saved with an older order of the parameters in MindSpeed's layers, and resumed with the present one.

    Since commit 3df491c3 a norm is registered before its linear weight and no longer after it; the version remained
    0.16.0.
    """
    platform = active_platform(source)
    from mindspeed.te.pytorch.module import layernorm_column_parallel_linear as module

    from longvita.checkpoint import load
    from longvita.checkpoint.resume import newest_intact
    from longvita.checkpoint.step_folders import checkpoint_root
    from longvita.convert.optimizer_format import resave
    from longvita.platforms.npu import platform as npu
    from tests.distributed.test_parameter_order import refused, wrong_masters
    from tests.distributed.training_runs import run_config, run_steps

    init = module.TELayerNormColumnParallelLinear.__init__

    def older_init(self: Any, *args: Any, **options: Any) -> None:
        init(self, *args, **options)
        for name in ("layer_norm_weight", "layer_norm_bias"):
            if name in self._parameters:
                self._parameters[name] = self._parameters.pop(name)

    module.TELayerNormColumnParallelLinear.__init__ = older_init
    root, config = Path(folder), run_config(layout, training={"precision": "bf16"})
    npu.library_version = lambda *args, **options: "0.16.0 (commit 66fbddd7)"
    state = fresh_state(platform, config)
    run_steps(state, 2)
    _save(state, root / "run")
    after = run_steps(state, 2)
    resave(root / "run", root / "by_name", "fully_reshardable", config, state.groups, platform)
    state.groups.destroy()

    module.TELayerNormColumnParallelLinear.__init__ = init
    npu.library_version = lambda *args, **options: "0.16.0 (commit e4772499)"
    state = fresh_state(platform, config)
    saved = newest_intact(checkpoint_root(root / "run"))
    found = {"after": after, "error": refused(load.load_state, state, saved)}
    target, by_name = root / "refused", "fully_reshardable"
    found["conversion"] = refused(resave, root / "run", target, by_name, config, state.groups, platform)
    resave(root / "by_name", root / "back", platform.optimizer_sharding_type, config, state.groups, platform)
    load.load_state(state, newest_intact(checkpoint_root(root / "back")))
    found["resumed"] = run_steps(state, 2)
    load.check_parameter_order = lambda *args: None
    load.load_state(state, saved)
    found["wrong without the check"] = wrong_masters(state)
    return found


def greedy_answers(rank: int, size: int, layouts: list[dict[str, Any]], source: str | None = None) -> list[list[int]]:
    """Greedy tokens of the golden model at each layout, with its prompt in chunks of seven tokens."""
    import torch

    platform = active_platform(source)
    from longvita.checkpoint.hf.read_weights import read_weights
    from longvita.inference.engine import Engine
    from longvita.model.build import build_model
    from tests.distributed import test_generation as golden

    found = []
    for layout in layouts:
        config = golden.golden_config(layout, chunk_size=7)
        groups = platform.build_groups(config)
        models = build_model(config, groups, platform, fresh=False)
        read_weights(models, golden.GOLDEN, groups)
        engine = Engine(models, config, None, groups, platform)
        prompt, data = golden.golden_prompt()
        starts = torch.tensor(prompt.tile_starts)
        found.append(engine.generate_tokens(data["input_ids"], data["images"], starts, len(golden.GREEDY_TOKENS)))
        groups.destroy()
    return found
