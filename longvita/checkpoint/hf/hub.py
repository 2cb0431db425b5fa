"""Find a model's folder on this machine, by path or by Hub id; download it when needed."""

from __future__ import annotations

import re
from pathlib import Path

from longvita.checkpoint.errors import CheckpointError
from longvita.processes import raise_on_all_ranks

_FILES = ["*.safetensors", "*.json", "*.txt", "*.jinja", "*.model"]


def local_folder(name: str | Path, weights: bool = True) -> Path:
    """The folder of a model; a Hub id such as VITA-MLLM/Long-VITA-128K_HF is downloaded into the Hub's cache first.

    Without `weights` only configs and tokenizer are downloaded. With several processes the first one downloads while
    the others wait. Raises CheckpointError when the name is neither, or the download fails.
    """
    import torch.distributed as dist

    check_name(name)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    patterns = _FILES if weights else [pattern for pattern in _FILES if pattern != "*.safetensors"]
    first = not dist.is_initialized() or dist.get_rank() == 0
    downloaded = raise_on_all_ranks(lambda: _download(str(name), patterns) if first else None, error=CheckpointError)
    # The other ranks find the files in the cache, or download them to their own machine's disk.
    return downloaded or _download(str(name), patterns)


def check_name(name: str | Path) -> None:
    """Raise CheckpointError for a name that is neither a folder here nor a Hub id; needs no large library."""
    folder = Path(name).expanduser()
    if not folder.is_dir() and (folder.is_file() or not re.fullmatch(r"[\w.-]+/[\w.-]+", str(name))):
        raise CheckpointError(f"{name} is neither a folder nor a Hub id (OWNER/NAME)")


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
