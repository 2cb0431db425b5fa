"""Convert through a built model, at any TP and PP: from or to a training checkpoint."""

from __future__ import annotations

from pathlib import Path

from longvita.checkpoint.errors import CheckpointError
from longvita.checkpoint.hf.tensor_names import INTERNVL, LONG_VITA
from longvita.checkpoint.hf.write_weights import write_weights
from longvita.checkpoint.save import save_weights
from longvita.checkpoint.sources import load_weights
from longvita.config.schema import Config
from longvita.convert.request import DTYPES, ConversionRequest
from longvita.model.build import build_model
from longvita.parallel.groups import ParallelGroups
from longvita.platforms.base import Platform


def convert_with_model(request: ConversionRequest, config: Config, groups: ParallelGroups, platform: Platform) -> None:
    """Read the source's weights into a model at the config's layout, and write them in the target's format.

    A collective over one replica. Raises CheckpointError on every rank.
    """
    models = build_model(config, groups, platform, fresh=False)
    load_weights(models, request.source, groups, platform)
    folder, dtype = Path(request.target), DTYPES[config.training.precision]
    if request.format == "checkpoint":
        save_weights(models, config, folder, platform)
        return
    tokenizer = request.load_tokenizer()
    if request.format == "internvl" and tokenizer is None:
        raise CheckpointError(f"{request.source} names no tokenizer; give --tokenizer FOLDER")
    names = INTERNVL if request.format == "internvl" else LONG_VITA
    write_weights(models, folder, groups, names, tokenizer, request.max_shard_size, dtype)
