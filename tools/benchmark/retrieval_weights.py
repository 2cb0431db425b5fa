"""Weights set by hand so that the model must find coloured frames in a video by attention.

Vision tower and projector turn a frame of colour i into a hidden state with one nonzero entry, i, and a grey frame into
zero. A token that asks for frame i has one nonzero entry too, in another range. The head's query is large for the
matching key, on the slowest pair of rotary dimensions, which hardly turns over a million positions. The value writes i
to a third range. From there the output layer selects the token of colour i, and that token asks for frame i + 1. The
token alone is not enough: without the frame, the answer ends.
"""

from __future__ import annotations

import torch
from torch import Tensor

from longvita.model.long_vita import LongVITA

COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255))
"""Colours of the frames to find, in the order of the answer."""
HIDDEN = 64
"""Width of the language model and of its head."""
VISION_HIDDEN = 32
FRAME, ASKED, ANSWER = 0, 8, 16
"""Ranges of the hidden state: the colour of a frame, the colour that a token asks for, the colour that was found."""
SLOWEST_PAIRS = HIDDEN // 2 - len(COLOURS)
"""The first rotary pair that is used."""
QUERY_GAIN = 2.0
"""Scores are (QUERY_GAIN x 8)^2 / 8 = 32: one row outweighs e^32 others."""
SIGN_GAIN, SIGN_THRESHOLD = 10.0, 4.0
"""The three channels of a colour sum to more than 6 with its own signs, to less than 2.7 with another's."""


@torch.no_grad()
def set_weights(model: LongVITA, first_id: int, answer_ids: list[int]) -> None:
    """Set all weights. `first_id`: the last token of a prompt, which asks for the first colour's frame.

    Raises ValueError unless there is one answer token per colour.
    """
    if len(answer_ids) != len(COLOURS):
        raise ValueError(f"{len(answer_ids)} answer tokens for {len(COLOURS)} colours")
    weights = dict(model.named_parameters())
    for name, weight in weights.items():
        weight.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
    _see_colours(weights)
    _retrieve(weights, first_id, answer_ids)


def _see_colours(weights: dict[str, Tensor]) -> None:
    # Hidden state of a patch: its mean colour in three entries, and two constants of opposite sign. The constants keep
    # the variance in the projector's norm large, and replace the bias that its linear layers lack.
    patch = weights["vision_model.patch_embedding.weight"]
    constant = 4.0
    for channel in range(3):
        patch[channel, channel] = 1 / patch[0, 0].numel()
    weights["vision_model.position_embedding"][..., 3] = constant
    weights["vision_model.position_embedding"][..., 4] = -constant
    detect = weights["vision_projection.linear_fc1.weight"].unflatten(1, (-1, VISION_HIDDEN))
    patches = detect.shape[1]
    for number, colour in enumerate(COLOURS):
        signs = torch.tensor([1.0 if channel else -1.0 for channel in colour]) * SIGN_GAIN / patches
        detect[number, :, :3] = signs
        detect[number, :, 5] = -signs.sum()  # cancels the mean that the norm subtracts
        bias = SIGN_GAIN * SIGN_THRESHOLD / (2 * constant * patches)
        detect[number, :, 3] = -bias
        detect[number, :, 4] = bias
        weights["vision_projection.linear_fc2.weight"][FRAME + number, number] = 1.0


def _retrieve(weights: dict[str, Tensor], first_id: int, answer_ids: list[int]) -> None:
    embeddings = weights["language_model.embedding.word_embeddings.weight"]
    embeddings[first_id, ASKED] = 1.0
    layer = "language_model.decoder.layers.0.self_attention"
    query, key, value = weights[f"{layer}.linear_qkv.weight"].split(HIDDEN)
    project = weights[f"{layer}.linear_proj.weight"]
    for number, answer in enumerate(answer_ids):
        query[SLOWEST_PAIRS + number, ASKED + number] = QUERY_GAIN
        key[SLOWEST_PAIRS + number, FRAME + number] = QUERY_GAIN
        value[number, FRAME + number] = 1.0
        project[ANSWER + number, number] = 1.0
        weights["language_model.output_layer.weight"][answer, ANSWER + number] = 1.0
        embeddings[answer, ASKED + (number + 1) % len(answer_ids)] = 1.0
