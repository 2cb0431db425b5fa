"""The data pipeline: a plan of 17 million samples, requests to a store, and decoding compared with the published code.

    python tools/benchmark/data.py --json

It takes five minutes. The plan (one core): `plan_samples_per_second`, from an open index to the last packed sequence of
an epoch; `index_bytes_per_sample` and `open_seconds` of that index; `fill` at 16,384 tokens and `fill_long` at 131,072;
`step_imbalance`, the work of the slowest of 8 replicas divided by the mean, with attention and tiles counted, 64
sequences per step, for the worst of 200 steps; `fill_over_...`, our fill divided by another packer's on the same
samples. data_archives.py describes archives in a store, data_media.py pictures and videos, data_tables.py tables.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from data_archives import archive_figures
from data_media import picture_figures, video_figures
from data_media_material import MAKERS_OF_FILMS
from data_plan import plan_figures
from data_tables import table_figures
from harness import check_programs, print_figures


def main() -> int:
    """Run the parts in order."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--samples", type=int, default=17_000_000, help="rows of the synthetic index")
    parts: dict[str, Callable[[Path], dict[str, float]]] = {
        "plan": lambda folder: plan_figures(folder, arguments.samples),
        "archives": archive_figures,
        "pictures": picture_figures,
        "videos": video_figures,
        "tables": table_figures,
    }
    parser.add_argument("--part", choices=parts, action="append", help="run only this part (default: all)")
    arguments = parser.parse_args()
    chosen = arguments.part or list(parts)
    if "videos" in chosen:
        check_programs(*MAKERS_OF_FILMS)
    torch.set_num_threads(1)
    figures: dict[str, float] = {}
    for name in chosen:
        with tempfile.TemporaryDirectory(prefix=f"{name}-") as folder:
            figures |= parts[name](Path(folder))
    print_figures(figures, arguments.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
