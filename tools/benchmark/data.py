"""Data: the plan of 17 million samples, and decoding against the published way.

    python tools/benchmark/data.py --json

The plan (one core): `plan_samples_per_second`, from an open index to the last packed sequence of an epoch;
`index_bytes_per_sample` and `open_seconds` of that index; `fill` at 16,384 tokens and `fill_long` at 131,072;
`step_imbalance`, the slowest of 8 replicas' work over the mean, attention and tiles counted, 64 sequences a step, the
worst of 200 steps; `fill_over_...`, our fill over another packer's on the same samples. Media: see data_media.py.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from data_plan import plan_figures
from harness import print_figures


def main() -> int:
    """All parts, one after another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--samples", type=int, default=17_000_000, help="rows of the synthetic index")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print_figures(plan_figures(Path(folder), arguments.samples), arguments.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
