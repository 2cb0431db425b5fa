"""What the processes of the Ascend door's tests do. Nothing here imports megatron-core before the door is active."""

from __future__ import annotations

from pathlib import Path
from typing import Any

FUSED_NAMES = {
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "mlp.linear_fc1.layer_norm_weight": "pre_mlp_layernorm.weight",
}
"""Norms that the TE-shaped spec holds in the linear layer behind them, and their names where they stand alone."""


def active_door(source: str | None = None) -> Any:
    """The platform over the stubs, active; MindSpeed's own source where `source` is given."""
    from tests.stubs import ascend_platform

    platform = ascend_platform.platform(source)
    platform.activate()
    return platform


def step_at_each_layout(
    rank: int, size: int, layouts: list[dict[str, Any]], source: str | None = None
) -> list[dict[str, Any]]:
    """Loss, gradients and two optimizer steps of the mixed packed batch, at one layout after the other."""
    platform = active_door(source)
    return [_step(platform, sections) for sections in layouts]


def _step(platform: Any, sections: dict[str, Any]) -> dict[str, Any]:
    from longvita.parallel.groups import initialize
    from longvita.training.state import build_state
    from longvita.training.step import forward_backward, train_step
    from longvita.verify.compare import gather_gradients
    from tests.distributed.mixed_batch import micro_batches, tiny_config
    from tests.distributed.whole_tensors import local_parts

    config = tiny_config(**sections, optimizer={"adam_eps": 1e-2})
    groups = initialize(config, platform)
    state = build_state(config, groups, platform)
    batches = micro_batches(config, groups)
    for chunk in state.chunks:
        chunk.train()
        chunk.zero_grad_buffer()
    losses, _ = forward_backward(state, batches, len(batches), ("pictures", "text"))
    gather_gradients(state)
    gradients = local_parts(state.models, groups, lambda p: p.main_grad if p.requires_grad else None)
    steps = [train_step(state, micro_batches(config, groups, seed), len(batches)) for seed in range(2)]
    groups.destroy()
    gradients["parts"] = {_separate(name): part for name, part in gradients["parts"].items()}
    return {
        "loss": losses.loss,
        "gradients": gradients,
        "norms": [step.grad_norm for step in steps],
        "losses": [step.losses.loss for step in steps],
    }


def _separate(name: str) -> str:
    for fused, separate in FUSED_NAMES.items():
        name = name.replace(fused, separate)
    return name


def stopped_and_resumed(
    rank: int, size: int, runs: list[tuple[str, dict[str, Any]]], folder: str, source: str | None = None
) -> list[dict[str, Any]]:
    """Runs of some precision and layout, stopped after two steps, and what comes after a resume and without a stop."""
    platform = active_door(source)
    return [_stop_and_resume(platform, *run, Path(folder) / str(index)) for index, run in enumerate(runs)]


def _stop_and_resume(platform: Any, precision: str, layout: dict[str, Any], folder: Path) -> dict[str, Any]:
    from longvita.checkpoint.load import load_state
    from longvita.checkpoint.resume import newest_intact
    from longvita.checkpoint.save import Checkpointer
    from tests.distributed.training_runs import go_on, run_config, tensors, unequal

    config = run_config(layout, training={"precision": precision})
    state = _fresh(platform, config)
    before = go_on(state, 2)
    checkpointer = Checkpointer(folder, keep=1, platform=platform)
    checkpointer.save(state)
    checkpointer.poll(wait=True)
    after, wanted = go_on(state, 2), tensors(state)
    state.groups.destroy()
    again = _fresh(platform, config)
    newest = newest_intact(folder)
    if newest is None:
        raise RuntimeError(f"no checkpoint in {folder}")
    load_state(again, newest)
    found = go_on(again, 2)
    different = unequal(wanted, tensors(again))
    again.groups.destroy()
    return {"before": before, "after": after, "resumed": found, "different": different, "folder": str(newest)}


def _fresh(platform: Any, config: Any) -> Any:
    from longvita.parallel.groups import initialize
    from longvita.training.state import build_state

    return build_state(config, initialize(config, platform), platform)


def facts_of_activation(rank: int, size: int, source: str | None = None) -> dict[str, Any]:
    """What the door leaves behind: the command line, the arguments, and who is found in which place."""
    import sys

    sys.argv = ["longvita", "train", "config.yaml", "--context-parallel-size", "2"]
    platform = active_door(source)
    from megatron.core.extensions import transformer_engine
    from mindspeed.args_utils import get_full_args

    from tests.distributed.mixed_batch import tiny_config

    told = dict(vars(get_full_args()))
    platform.configure(tiny_config())
    return {
        "argv": list(sys.argv),
        "arguments_at_import": told,
        "arguments": {name: value for name, value in vars(get_full_args()).items() if not name.startswith("_")},
        "have_te": transformer_engine.HAVE_TE,
        "again": [one.patch.target for one in platform.activate()],
        "decisions": platform.decisions(),
    }


def too_late(rank: int, size: int, source: str | None = None) -> str:
    """The error of a door that is opened after megatron-core."""
    import megatron.core.transformer  # noqa: F401

    from longvita.platforms.base import PlatformError

    try:
        active_door(source)
    except PlatformError as error:
        return str(error)
    return "no error"


def configs_under_context_parallelism(rank: int, size: int, source: str | None = None) -> dict[str, Any]:
    """Fields of the vision tower's config, of the language model's, and of one that names none of them."""
    import torch

    platform = active_door(source)
    from megatron.core.transformer.transformer_config import TransformerConfig
    from mindspeed.args_utils import get_full_args

    from longvita.model.transformer_config import language_transformer_config, vision_transformer_config
    from longvita.parallel.groups import initialize
    from tests.distributed.mixed_batch import tiny_config

    config = tiny_config(layout={"context_parallel": 2})
    groups = initialize(config, platform)
    # As a command line of Megatron's own would leave them there.
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
    """Our attention's error for each mask type but causal, and whether MindSpeed's own looks ahead with it."""
    import torch

    platform = active_door(source)
    from megatron.core.packed_seq_params import PackedSeqParams
    from megatron.core.transformer.enums import AttnMaskType

    from longvita.model.transformer_config import language_transformer_config
    from longvita.parallel.groups import initialize
    from longvita.platforms.base import PlatformError
    from longvita.platforms.npu.layers import DocumentAttention
    from tests.distributed.mixed_batch import tiny_config

    config = tiny_config()
    groups = initialize(config, platform)
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


def saved_for_all(rank: int, size: int, folder: str, layout: dict[str, Any]) -> dict[str, Any]:
    """A run's checkpoint, the same in the format for all platforms, and what comes after it."""
    platform = active_door()
    from longvita.checkpoint.errors import CheckpointError
    from longvita.checkpoint.load import load_state
    from longvita.checkpoint.resume import newest_intact
    from longvita.checkpoint.step_folders import checkpoint_root
    from longvita.convert.optimizer_format import resave
    from tests.distributed.training_runs import go_on, run_config

    root = Path(folder)
    config = run_config(layout, training={"precision": "fp32"})
    state = _fresh(platform, config)
    go_on(state, 2)
    _save(state, root / "ascend")
    after = go_on(state, 2)
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


def cpu_goes_on(rank: int, size: int, folder: str, layout: dict[str, Any]) -> dict[str, Any]:
    """The CPU door goes on from the checkpoint for all, and saves one for the way back."""
    from longvita.checkpoint.errors import CheckpointError
    from longvita.checkpoint.load import load_state
    from longvita.checkpoint.resume import newest_intact
    from longvita.checkpoint.step_folders import checkpoint_root
    from tests.distributed.training_runs import go_on, run_config, start

    root = Path(folder)
    state = start(run_config(layout, training={"precision": "fp32"}))
    try:
        load_state(state, newest_intact(checkpoint_root(root / "ascend")))
        error = ""
    except CheckpointError as refused:
        error = str(refused)
    load_state(state, newest_intact(checkpoint_root(root / "for_all")))
    _save(state, root / "cpu")
    return {"after": go_on(state, 2), "error": error}


def back_again(rank: int, size: int, folder: str, layout: dict[str, Any]) -> list[tuple[float, float]]:
    """The Ascend door goes on from the CPU's checkpoint, once it is in its own format."""
    platform = active_door()
    from longvita.checkpoint.load import load_state
    from longvita.checkpoint.resume import newest_intact
    from longvita.checkpoint.step_folders import checkpoint_root
    from longvita.convert.optimizer_format import resave
    from tests.distributed.training_runs import go_on, run_config

    root = Path(folder)
    config = run_config(layout, training={"precision": "fp32"})
    state = _fresh(platform, config)
    resave(root / "cpu", root / "back", platform.optimizer_sharding_type, config, state.groups, platform)
    load_state(state, newest_intact(checkpoint_root(root / "back")))
    return go_on(state, 2)


def greedy_answers(rank: int, size: int, layouts: list[dict[str, Any]], source: str | None = None) -> list[list[int]]:
    """Greedy tokens of the golden model at each layout, its prompt taken in chunks of seven."""
    import torch

    platform = active_door(source)
    from longvita.checkpoint.hf.read_weights import read_weights
    from longvita.inference.engine import Engine
    from longvita.model.build import build_model
    from longvita.parallel.groups import initialize
    from tests.distributed import test_generation as golden

    found = []
    for layout in layouts:
        config = golden.golden_config(layout, chunk_size=7)
        groups = initialize(config, platform)
        models = build_model(config, groups, platform, fresh=False)
        read_weights(models, golden.GOLDEN, groups)
        engine = Engine(models, config, None, groups, platform)
        prompt, data = golden.golden_prompt()
        starts = torch.tensor(prompt.tile_starts)
        found.append(engine.generate_tokens(data["input_ids"], data["images"], starts, len(golden.GREEDY_TOKENS)))
        groups.destroy()
    return found
