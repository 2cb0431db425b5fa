"""Find a model's folder on this machine, by path or by Hub id; download it when needed."""

from __future__ import annotations

import re
from pathlib import Path

import torch.distributed as dist

from longvita.checkpoint.errors import CheckpointError

_FILES = ["*.safetensors", "*.json", "*.txt", "*.jinja", "*.model"]


def local_folder(name: str | Path, weights: bool = True) -> Path:
    """The folder of a model; a Hub id such as VITA-MLLM/Long-VITA-128K_HF is downloaded into the Hub's cache first.

    Without `weights` only configs and tokenizer are downloaded. With several processes the first one downloads while
    the others wait. Raises CheckpointError when the name is neither, or the download fails.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_file() or not re.fullmatch(r"[\w.-]+/[\w.-]+", str(name)):
        raise CheckpointError(f"{name} is neither a folder nor a Hub id (OWNER/NAME)")
    patterns = _FILES if weights else [pattern for pattern in _FILES if pattern != "*.safetensors"]
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return _download(str(name), patterns)
    outcome: list[str] = [""]
    if dist.get_rank() == 0:
        try:
            _download(str(name), patterns)
        except CheckpointError as error:
            outcome[0] = str(error)
    dist.broadcast_object_list(outcome)
    if outcome[0]:
        raise CheckpointError(outcome[0])
    return _download(str(name), patterns)  # from the cache, or onto this machine's own disk


def _download(name: str, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except HFValidationError as error:
        raise CheckpointError(f"{name} is neither a folder nor a Hub id: {error}") from error
    except (HfHubHTTPError, OSError) as error:
        reason = str(error).strip().split("\n")[0]
        raise CheckpointError(
            f"{name} is no folder here and could not be downloaded from the Hugging Face Hub ({type(error).__name__}: "
            f"{reason}). Without network, download it elsewhere and give the folder's path."
        ) from error
