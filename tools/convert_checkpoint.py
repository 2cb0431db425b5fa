"""Converts checkpoints: `longvita convert` under the name of the published script.

python tools/convert_checkpoint.py --from SOURCE --to FOLDER --format long_vita
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from longvita.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "convert")
    main()
