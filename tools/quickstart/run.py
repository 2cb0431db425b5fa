"""The quickstart: build the data, train four stages, evaluate, export, check the export, generate answers, report.

    python -m tools.quickstart.run

Complete stages are not trained again: the command resumes where it was stopped. A change of the data, of a config or of
an earlier stage restarts all later stages.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from rich.console import Console

from longvita.commands.convert import convert
from longvita.commands.train import train_stages
from longvita.config import dump, load
from longvita.config.schema import Config
from longvita.config.sizes import ulysses_size
from longvita.data.media.pictures.picture_file import open_picture
from tools.quickstart.build import COMPLETE, DEPTHS, LONG, NEEDLE_FOLDER, TOKENIZER, Sizes, build, needle_source
from tools.quickstart.evaluate import HeldOutRun, evaluate_held_out
from tools.quickstart.export_check import largest_difference
from tools.quickstart.picture import first_frames, in_terminal
from tools.quickstart.report import ReportAnswer, write_html

CONFIGS = Path("configs/train/quickstart")
OUTPUT = Path("runs/quickstart")
DATA = OUTPUT / "data"
NEEDLES = "needle"
ORIGIN = "origin.txt"
"""File in each folder with a digest of the data, config and stages that it was made from."""
PROCESSES = 2
console = Console()


@dataclass(frozen=True)
class QuickstartStage:
    """One of the four stages: its training runs, in order, and its held-out sources."""

    name: str
    title: str
    runs: tuple[str, ...]
    sources: tuple[str, ...]


def needle_sources() -> tuple[str, ...]:
    """Stage 4's held-out sources, the longest videos first."""
    return tuple(needle_source(frames, depth) for frames in Sizes().needles for depth in DEPTHS)


STAGES = (
    QuickstartStage("stage1", "the digit of one picture", ("stage1",), ("digit",)),
    QuickstartStage("stage2", "questions about one to six pictures", ("stage2",), ("pictures",)),
    QuickstartStage("stage3", "the digit after the marker in a video", ("stage3_short", "stage3"), ("long_videos",)),
    QuickstartStage("stage4", "the one digit in a long video", ("stage4",), needle_sources()),
)


def main() -> int:
    """Run all steps and return the exit code."""
    torch.set_num_threads(1)
    started = time.monotonic()
    say("writing pictures, videos, questions and a tokenizer made from scikit-learn's scanned digits")
    build(DATA)
    remove_outdated()
    code = train_missing()
    if code != 0:
        return code
    scores, again = evaluate()
    code = export()
    if code != 0:
        return code
    difference = largest_difference(
        CONFIGS / "stage2.yaml", "pictures", OUTPUT / "stage4", OUTPUT / "export", OUTPUT / "export_check.json"
    )
    report = {
        "stages": [summary(stage, scores[stage.name]) for stage in STAGES],
        "short_context_accuracy_after": accuracy(again, STAGES[1].sources),
        "export_max_abs_logit_difference": difference,
        "seconds": time.monotonic() - started,
    }
    (OUTPUT / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    answers = generate_answers()
    film = find_needles()
    write_html(OUTPUT, report, scores["stage4"], film, answers, [run for stage in STAGES for run in stage.runs])
    print_summary(report)
    return 0


def say(text: str) -> None:
    """Print a line of progress."""
    console.print(f"[bold]quickstart[/bold] {text}")


def remove_outdated() -> None:
    """Remove the folders whose data, config or earlier stages have changed."""
    origin = (DATA / COMPLETE).read_text()
    configs = {run: json.dumps(dump(load(CONFIGS / f"{run}.yaml"))) for stage in STAGES for run in stage.runs}
    for folder, config in [*configs.items(), ("export", ""), (NEEDLES, "")]:
        origin = hashlib.sha256(f"{origin}\n{config}".encode()).hexdigest()
        note = OUTPUT / folder / ORIGIN
        if not note.exists() or note.read_text() != origin:
            shutil.rmtree(OUTPUT / folder, ignore_errors=True)
            note.parent.mkdir(parents=True)
            note.write_text(origin)


def train_missing() -> int:
    """Train the runs that are not complete, all in the same processes, and return the exit code."""
    left = [(stage, run) for stage in STAGES for run in stage.runs if not is_complete(OUTPUT / run)]
    for stage, run in left:
        say(f"will train {stage.name}, {stage.title}, as `longvita train {CONFIGS / run}.yaml` does")
    return train_stages(*(load(CONFIGS / f"{run}.yaml") for _, run in left)) if left else 0


def is_complete(folder: Path) -> bool:
    """Whether a run has completed all its steps."""
    report = folder / "report.json"
    return report.exists() and json.loads(report.read_text())["reason"] == "complete"


def evaluate() -> tuple[dict[str, dict[str, list[int]]], dict[str, list[int]]]:
    """Right and all answers of each stage's held-out sources, and those of stage 2 by the weights after stage 4."""
    runs = {stage.name: held_out_run(stage, stage.name) for stage in STAGES}
    again = held_out_run(STAGES[1], "stage4")
    missing = [one for one in (*runs.values(), again) if not one.result.exists()]
    if missing:
        say("evaluating on held-out digits")
        evaluate_held_out(missing, PROCESSES)
    scores = {name: json.loads(one.result.read_text()) for name, one in runs.items()}
    return scores, json.loads(again.result.read_text())


def held_out_run(stage: QuickstartStage, weights: str) -> HeldOutRun:
    """The evaluation of the weights after stage `weights` on another stage's held-out sources."""
    sources = {name: {"data_paths": [str(DATA / "held_out" / f"{name}.jsonl")]} for name in stage.sources}
    return HeldOutRun(
        CONFIGS / f"{stage.runs[-1]}.yaml",
        (f"data.validation={json.dumps(sources)}", "training.validation_sequences=1000"),
        OUTPUT / weights,
        OUTPUT / weights / f"held_out_{stage.name}.json",
    )


def accuracy(counts: dict[str, list[int]], sources: tuple[str, ...]) -> float:
    """Accuracy over the answers of these sources."""
    return sum(counts[name][0] for name in sources) / sum(counts[name][1] for name in sources)


def summary(stage: QuickstartStage, counts: dict[str, list[int]]) -> dict:
    """A stage's entry in report.json. Stage 4's accuracy is that of the longest videos."""
    config = load(CONFIGS / f"{stage.runs[-1]}.yaml")
    reports = [json.loads((OUTPUT / run / "report.json").read_text()) for run in stage.runs]
    sources = stage.sources[: len(DEPTHS)] if stage.name == "stage4" else stage.sources
    return {
        "name": stage.name,
        "layout": layout_name(config),
        "sequence_length": config.data.sequence_length,
        "seconds": sum(report["seconds"] for report in reports),
        "loss": reports[-1]["loss"],
        "accuracy": accuracy(counts, sources),
        "questions": sum(counts[name][1] for name in sources),
    }


def layout_name(config: Config) -> str:
    """The layout in short, as in "TP2 SP" or "CP2 ring"."""
    layout = config.layout
    names = {"TP": layout.tensor_parallel, "PP": layout.pipeline_parallel, "CP": layout.context_parallel}
    names["DP"] = PROCESSES // math.prod(names.values())
    words = [f"{name}{size}" for name, size in names.items() if size > 1]
    if layout.sequence_parallel:
        words.append("SP")
    if layout.context_parallel > 1:
        words.append({1: "ring", layout.context_parallel: "Ulysses"}.get(ulysses_size(config), "ring of Ulysses"))
    return " ".join(words)


def export() -> int:
    """Export the last stage's weights in both Hugging Face formats and return the exit code."""
    for kind in ("long_vita", "internvl"):
        target, draft = OUTPUT / "export" / kind, OUTPUT / "export" / f".{kind}"
        if target.exists():
            continue
        shutil.rmtree(draft, ignore_errors=True)
        code = convert(str(OUTPUT / "stage4"), str(draft), kind, tokenizer=str(DATA / TOKENIZER), platform="cpu")
        if code != 0:
            return code
        draft.rename(target)
    return 0


def generate_answers() -> list[ReportAnswer]:
    """Generate the exported model's answers about a held-out picture and a held-out video, and print them."""
    answers = []
    for source, option, key in (("digit", "--image", "images"), ("long_videos", "--video", "videos")):
        line = json.loads((DATA / "held_out" / f"{source}.jsonl").read_text().splitlines()[0])
        path = DATA / line[key][0]
        question, right = (message["content"] for message in line["messages"])
        shown = [open_picture(path)] if key == "images" else first_frames(path, LONG[1])
        command = ["generate", str(OUTPUT / "export" / "long_vita"), "--question", question, option, str(path)]
        if key == "videos":
            command += ["--max-num-frames", str(LONG[1]), "--layout", "cp=2"]
        finished = subprocess.run(
            [sys.executable, "-m", "longvita", *command], capture_output=True, text=True, check=True
        )
        answers.append(ReportAnswer(path.name, question, finished.stdout.strip(), right, shown))
        console.print(in_terminal(shown[:8]))
        console.print(f"{path}\nquestion: {question!r}\nanswer: {finished.stdout.strip()!r} (right: {right!r})")
    return answers


def find_needles() -> Image.Image:
    """Evaluate the exported model by `longvita evaluate --task needle`, with held-out scans of the digits as needles.

    Unlike stage 4's questions, which have a video each, it uses one film at every depth and length. Returns the picture
    of the results.
    """
    say("evaluating on needles in a film")
    lengths = ",".join(str(frames) for frames in Sizes().needles)
    depths = ",".join(str(depth) for depth in DEPTHS)
    command = [
        "evaluate",
        str(OUTPUT / "export" / "long_vita"),
        "--task",
        "needle",
        "--data",
        str(DATA / NEEDLE_FOLDER),
    ]
    command += ["--output", str(OUTPUT / NEEDLES), "--lengths", lengths, "--depths", depths, "--layout", "cp=2"]
    subprocess.run([sys.executable, "-m", "longvita", *command], check=True)
    return open_picture(OUTPUT / NEEDLES / "needle.png")


def print_summary(report: dict) -> None:
    """Print the results of the stages."""
    for stage in report["stages"]:
        say(
            f"{stage['name']} ({stage['layout']}, {stage['sequence_length']} tokens, {stage['seconds']:.0f} s): "
            f"accuracy {stage['accuracy']:.3f} on {stage['questions']} questions about held-out digits"
        )
    say(f"stage 2 evaluated again after stage 4: {report['short_context_accuracy_after']:.3f}")
    say(f"largest difference of a logit of the exported folders: {report['export_max_abs_logit_difference']:.1e}")
    say(f"{report['seconds'] / 60:.1f} minutes; see {OUTPUT / 'report.html'}")


if __name__ == "__main__":
    sys.exit(main())
