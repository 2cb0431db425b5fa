"""The model as transformers' InternVL, which loads without remote code: its limits, and all files but the weights.

The two models compute the same function. InternVL's projector is Linear(4C, H), GELU, Linear(H, H) with biases, ours
Linear(4C, P), GELU, Linear(P, H) without. With rows and columns from P to H zero and biases zero they agree exactly,
since GELU(0) is 0.
"""

from __future__ import annotations

from pathlib import Path

from longvita.checkpoint.errors import CheckpointError
from longvita.checkpoint.hf.config_json import NATIVE_PROJECTOR_EPSILON, internvl_settings, write_json
from longvita.checkpoint.hf.tokenizer_files import Tokenizer, token_id, write_generation_config, write_tokenizer
from longvita.config.schema import ModelConfig
from longvita.data.media.image import IMAGE_MEAN, IMAGE_STD

IMAGE_TOKEN = "<IMG_CONTEXT>"
"""The token that the features of a tile replace."""
_BICUBIC = 3  # PIL's number for it


def check_internvl(model: ModelConfig) -> None:
    """Raise CheckpointError when the InternVL format cannot hold this model."""
    projector, language = model.projector, model.language
    if projector.hidden_size > language.hidden_size:
        raise CheckpointError(
            f"model.projector.hidden_size {projector.hidden_size} is above model.language.hidden_size "
            f"{language.hidden_size}: InternVL's projector is as wide inside as the language model. Train with at most "
            f"{language.hidden_size}, or export --format long_vita"
        )
    if projector.layernorm_epsilon != NATIVE_PROJECTOR_EPSILON:
        raise CheckpointError(
            f"model.projector.layernorm_epsilon {projector.layernorm_epsilon} cannot be written: InternVL's is fixed "
            f"at {NATIVE_PROJECTOR_EPSILON}"
        )
    if projector.downsample not in (1, 2, 4):
        raise CheckpointError(
            f"model.projector.downsample {projector.downsample} cannot be written: InternVL multiplies by its "
            "reciprocal, which is exact for 1, 2 and 4 only"
        )


def write_internvl_files(model: ModelConfig, folder: Path, tokenizer: Tokenizer, dtype: str) -> None:
    """Write every file of an InternVL folder except the weights."""
    write_json(folder / "config.json", internvl_settings(model, dtype, token_id(tokenizer, IMAGE_TOKEN)))
    write_generation_config(folder, tokenizer)
    write_tokenizer(tokenizer, folder)
    side, processor = model.vision.image_size, {"processor_class": "InternVLProcessor"}
    pixels = {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": list(IMAGE_MEAN),
        "image_std": list(IMAGE_STD),
        **processor,
        "resample": _BICUBIC,
        "rescale_factor": 1 / 255,
        "size": {"height": side, "width": side},
    }
    tiles = {"crop_to_patches": False, "min_patches": 1, "max_patches": 12}
    pictures = {**pixels, **tiles, "image_processor_type": "GotOcr2ImageProcessor"}
    videos = {**pixels, "do_sample_frames": False, "video_processor_type": "InternVLVideoProcessor"}
    write_json(folder / "preprocessor_config.json", pictures)
    write_json(folder / "video_preprocessor_config.json", videos)
    write_json(folder / "processor_config.json", {**processor, "image_seq_length": model.tokens_per_tile})
