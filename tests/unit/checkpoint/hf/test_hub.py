"""A model's folder by path or by Hub id."""

from __future__ import annotations

from pathlib import Path

import pytest

from longvita.checkpoint.errors import CheckpointError
from longvita.checkpoint.hf.hub import local_folder


@pytest.mark.parametrize("name", ["no/such/folder", "nowhere", "./no/folder"])
def test_a_name_that_is_neither_folder_nor_hub_id_is_refused(name: str):
    with pytest.raises(CheckpointError, match="neither a folder nor a Hub id"):
        local_folder(name)


def test_a_hub_id_without_network_is_refused_with_a_fix(monkeypatch: pytest.MonkeyPatch):
    import huggingface_hub

    def offline(name: str, **options: object) -> str:
        raise OSError("Name or service not known")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(CheckpointError, match=r"could not be downloaded .*Name or service not known.*give the folder"):
        local_folder("VITA-MLLM/Long-VITA-128K_HF")


def test_a_hub_id_becomes_the_folder_of_its_download(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    import huggingface_hub

    asked = []

    def downloaded(name: str, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", downloaded)
    assert local_folder("VITA-MLLM/Long-VITA-128K_HF", weights=False) == tmp_path
    assert asked[0][0] == "VITA-MLLM/Long-VITA-128K_HF"
    assert "*.safetensors" not in asked[0][1]
    assert local_folder(tmp_path) == tmp_path
