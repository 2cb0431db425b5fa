"""A small training run on real files: a tokenizer, texts, pictures, one sample that is broken, and its config."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from longvita.config import to_yaml
from longvita.training.metrics import read_metrics
from tests.tiny import tiny_config
from tests.unit.data.material import VOCABULARY, conversation, picture, write_jsonl, write_tokenizer

STEPS = 24
COLOURS = ("red", "green", "blue", "grey")
LAUNCH_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def write_run(folder: Path, **sections: Any) -> Path:
    """Write the files and the config of a run of STEPS steps in two processes; the config's path."""
    write_tokenizer(folder / "tokenizer")
    (folder / "media").mkdir(parents=True, exist_ok=True)
    pictures = []
    for number, name in enumerate(("chelsea", "coffee", "astronaut", "rocket")):
        picture(name).resize((64, 48)).save(folder / "media" / f"{number}.png")
        pictures.append(conversation(f"<image>\nNumber {number}?", COLOURS[number], images=[f"{number}.png"]))
    pictures.append(conversation("<image>\nWhich?", "none", images=["absent.png"]))
    words = [conversation(f"Count to {n}.", " ".join(str(k) for k in range(1, n + 1))) for n in range(3, 15)]
    write_jsonl(folder / "words.jsonl", words)
    write_jsonl(folder / "pictures.jsonl", pictures)
    write_jsonl(folder / "held_out.jsonl", [conversation(f"Count to {n}.", "1 2 3") for n in (4, 6)])
    data = {
        "tokenizer": str(folder / "tokenizer"),
        "dataset": {"words": {"data_paths": ["words.jsonl"]}, "pictures": {"data_paths": ["pictures.jsonl"]}},
        "validation": {"held_out": {"data_paths": ["held_out.jsonl"]}},
        "data_root": str(folder),
        "media_root": str(folder / "media"),
        "sequence_length": 128,
        "max_num_tiles": 1,
        "max_num_frames": 8,
        "num_workers": 1,
    }
    fields: dict[str, Any] = {
        "output": str(folder / "run"),
        "data": data,
        "model": {"language": {"vocab_size": VOCABULARY}},
        "layout": {"processes": 2},
        "training": {
            "global_batch_size": 2,
            "train_iterations": STEPS,
            "validation_interval": 10,
            "validation_sequences": 2,
        },
        "checkpoint": {"save_interval": 3},
        "inference": {"max_seq_len": 256, "max_num_frames": 8, "max_new_tokens": 16},
        "optimizer": {"vision_lr_mult": 0.1, "vision_layer_decay": 0.9},
    }
    for section, values in sections.items():
        fields[section] = {**fields.get(section, {}), **values}
    path = folder / "run.yaml"
    path.write_text(to_yaml(tiny_config(**fields)), encoding="utf-8")
    return path


def environment(**variables: str) -> dict[str, str]:
    """This process's environment without a launcher's variables, with those given."""
    kept = {k: v for k, v in os.environ.items() if k not in LAUNCH_VARIABLES and not k.startswith("SLURM_")}
    return {**kept, "OMP_NUM_THREADS": "1", **variables}


def start_train(config: Path, *overrides: str, **variables: str) -> subprocess.Popen:
    """`longvita train` in a process group of its own; standard error goes to the file beside the config."""
    command = [sys.executable, "-m", "longvita", "train", str(config), *overrides]
    return start(command, config.parent, **variables)


def start(command: list[str], folder: Path, **variables: str) -> subprocess.Popen:
    """Start a command in a process group of its own, its output appended to `log.txt` in the folder."""
    with (folder / "log.txt").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=environment(**variables))


def log_of(folder: Path) -> str:
    """What the commands in a folder have said so far."""
    return (folder / "log.txt").read_text(encoding="utf-8", errors="replace")


def losses_of(output: Path) -> dict[int, float]:
    """Training loss by step."""
    return {line["step"]: line["loss"] for line in read_metrics(output) if "loss" in line}
