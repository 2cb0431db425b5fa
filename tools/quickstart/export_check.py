"""Comparison of the exported folders with our model on the same inputs.

transformers runs the InternVL folder. An independent implementation runs the Long-VITA folder: plain torch on the
tensors by their published names, with transformers' Qwen2 as the language model. It shares no code with longvita.model
or longvita.checkpoint.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from longvita import platforms
from longvita.checkpoint.load import load_weights
from longvita.checkpoint.resume import intact_checkpoint
from longvita.config import load
from longvita.data.loader import VALIDATION, LoaderRanks, build_loader
from longvita.model.build import build_model
from longvita.processes import init_distributed, launch
from tools.quickstart.evaluate import EVALUATION_LAYOUT

Inputs = tuple[Tensor, Tensor, Tensor]
"""Token ids [1, t], tiles [n, 3, H, W] and the position of each tile's first token [n] of a document."""


def largest_difference(config: Path, source: str, checkpoint: Path, export: Path, result: Path) -> float:
    """Largest difference of a logit over a packed sequence of a held-out source, over both folders.

    Raises RuntimeError if the check fails.
    """
    payload = {
        "config": str(config),
        "source": source,
        "checkpoint": str(checkpoint),
        "export": str(export),
        "result": str(result),
    }
    if launch("tools.quickstart.export_check:run", payload, 1) != 0:
        raise RuntimeError(f"the check of {export} failed; see its output above")
    return max(json.loads(result.read_text()).values())


@torch.no_grad()
def run(payload: dict[str, Any]) -> int:
    """Compute the logits by the model and by both readers, and write the largest differences."""
    config = load(payload["config"], [*EVALUATION_LAYOUT, "training.micro_batch_size=1"])
    platform = platforms.get(config.platform)
    platform.activate()
    init_distributed(platform.backend, platform.set_device)
    groups = platform.build_groups(config)
    model = build_model(config, groups, platform, fresh=False)[0].eval()
    load_weights([model], intact_checkpoint(Path(payload["checkpoint"])), platform)
    batch = next(build_loader(config, LoaderRanks.from_groups(groups), 0, VALIDATION + payload["source"]))
    ours = model.logits(batch)
    export = Path(payload["export"])
    readers: dict[str, LongVITAReader | InternVLReader] = {
        "long_vita": LongVITAReader(export / "long_vita"),
        "internvl": InternVLReader(export / "internvl"),
    }
    differences = dict.fromkeys(readers, 0.0)
    bounds = batch.cu_seqlens.tolist()
    for start, end, name in zip(bounds, bounds[1:], batch.document_sources, strict=False):
        if not name:
            continue
        inside = (batch.tile_starts >= start) & (batch.tile_starts < end)
        inputs = (batch.input_ids[:, start:end], batch.tiles[inside], batch.tile_starts[inside] - start)
        for folder, reader in readers.items():
            difference = float((reader.logits(inputs) - ours[start:end]).abs().max())
            differences[folder] = max(differences[folder], difference)
    Path(payload["result"]).write_text(json.dumps(differences))
    return 0


class InternVLReader:
    """transformers' InternVL, with its context token at every row of a tile."""

    def __init__(self, folder: Path):
        from transformers import AutoModelForImageTextToText

        self.model: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()

    def logits(self, inputs: Inputs) -> Tensor:
        """Logits of a document, [t, v]."""
        ids, tiles, starts = inputs
        ids = ids.clone()
        rows = self.model.config.image_seq_length
        for start in starts.tolist():
            ids[0, start : start + rows] = self.model.config.image_token_id
        return self.model(input_ids=ids, pixel_values=tiles).logits[0]


class LongVITAReader:
    """The published format, read tensor by tensor."""

    def __init__(self, folder: Path):
        from transformers import Qwen2Config, Qwen2ForCausalLM

        self.config = json.loads((folder / "config.json").read_text())
        self.weights: dict[str, Tensor] = {}
        for file in sorted(folder.glob("*.safetensors")):
            self.weights.update(load_file(file))
        # transformers 5 accepts rope_theta, but does not list it in to_dict.
        names = {*Qwen2Config().to_dict(), "rope_theta"}
        settings = {key: value for key, value in self.config.items() if key in names - {"architectures", "model_type"}}
        rope = {"rope_type": "default", "rope_theta": self.config["rope_theta"]}
        self.language: Any = Qwen2ForCausalLM(Qwen2Config(**settings, rope_parameters=rope)).eval()
        vision = ("model.vision_model.", "model.vision_projection.")
        state = {name: value for name, value in self.weights.items() if not name.startswith(vision)}
        self.language.load_state_dict(state, strict=True)

    def logits(self, inputs: Inputs) -> Tensor:
        """Logits of a document, [t, v]."""
        ids, tiles, starts = inputs
        embeddings = self.language.get_input_embeddings()(ids)
        features = self.project(self.encode(tiles))
        for start, rows in zip(starts.tolist(), features, strict=True):
            embeddings[0, start : start + len(rows)] = rows
        return self.language(inputs_embeds=embeddings).logits[0]

    def encode(self, tiles: Tensor) -> Tensor:
        """InternViT: [n, patches + 1, C]."""
        visual, w = self.config["visual"], self.weights
        prefix = "model.vision_model.embeddings."
        patches = functional.conv2d(
            tiles, w[prefix + "patch_embedding.weight"], w[prefix + "patch_embedding.bias"], stride=visual["patch_size"]
        )
        hidden = torch.cat(
            [w[prefix + "class_embedding"].expand(len(tiles), -1, -1), patches.flatten(2).transpose(1, 2)], dim=1
        )
        hidden = hidden + w[prefix + "position_embedding"]
        for layer in range(visual["num_hidden_layers"]):
            hidden = self._layer(hidden, f"model.vision_model.encoder.layers.{layer}.")
        return hidden

    def _layer(self, hidden: Tensor, prefix: str) -> Tensor:
        w, heads = self.weights, self.config["visual"]["num_attention_heads"]

        def linear(x: Tensor, name: str) -> Tensor:
            return functional.linear(x, w[f"{prefix}{name}.weight"], w[f"{prefix}{name}.bias"])

        def norm(x: Tensor, name: str) -> Tensor:
            shape, epsilon = x.shape[-1:], self.config["visual"]["layer_norm_eps"]
            return functional.layer_norm(x, shape, w[f"{prefix}{name}.weight"], w[f"{prefix}{name}.bias"], epsilon)

        n, s, c = hidden.shape
        q, k, v = linear(norm(hidden, "norm1"), "attn.qkv").view(n, s, 3, heads, c // heads).permute(2, 0, 3, 1, 4)
        scores = (q @ k.transpose(-1, -2)) * (c // heads) ** -0.5
        attended = (scores.softmax(dim=-1) @ v).transpose(1, 2).reshape(n, s, c)
        hidden = hidden + linear(attended, "attn.proj") * w[prefix + "ls1"]
        middle = functional.gelu(linear(norm(hidden, "norm2"), "mlp.fc1"))
        return hidden + linear(middle, "mlp.fc2") * w[prefix + "ls2"]

    def project(self, hidden: Tensor) -> Tensor:
        """Pixel shuffle by two and the projector: [n, patches / 4, h]."""
        w, prefix = self.weights, "model.vision_projection."
        n, patches, c = hidden[:, 1:].shape
        side = round(patches**0.5)
        grid = hidden[:, 1:].reshape(n, side, side, c)
        # Pixel shuffle by 0.5 joins each square of four: two neighbours in a row, then the next row.
        squares = grid.view(n, side // 2, 2, side // 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(n, patches // 4, 4 * c)
        rows = functional.layer_norm(
            squares, (4 * c,), w[prefix + "pre_proj_layernorm.weight"], w[prefix + "pre_proj_layernorm.bias"]
        )
        return functional.gelu(rows @ w[prefix + "mlp.0.weight"].t()) @ w[prefix + "mlp.2.weight"].t()
