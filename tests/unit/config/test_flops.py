import pytest

from longvita.config.flops import Workload, language_parts, training_flops, vision_parts
from tests.tiny import tiny_config

MODEL = tiny_config().model


def language_linear_per_token():
    """Of tests.tiny's two layers: q 32x32, k and v 2 groups x 8 x 2, output 32x32, SwiGLU 3 x 32 x 64."""
    return 2 * 2 * (32 * 32 + 32 * 32 + 32 * 32 + 3 * 32 * 64)


def test_language_by_hand():
    work = Workload(tokens=10, attention_pairs=55, loss_tokens=4)
    linear = 10 * language_linear_per_token()
    attention = 2 * 55 * (2 * 2 * 32)  # two layers; scores and values, 2 operations for each of 32 channels
    head = 4 * 2 * 32 * 128
    assert sum(language_parts(MODEL, work).values()) == linear + attention + head
    assert training_flops(MODEL, work, ["language"]) == 3 * (linear + attention + head)
    # Frozen weights need no product for their gradient, but what lies before them is still to be reached.
    assert training_flops(MODEL, work, ["projector"]) == 2 * (linear + head) + 3 * attention


def test_vision_by_hand():
    work = Workload(tiles=2)
    positions, patches = 5, 4  # a 28-pixel tile has 2 x 2 patches of 14, and a class token
    patch = 2 * patches * (3 * 14 * 14) * 32
    linear = 2 * positions * 2 * (32 * 96 + 32 * 32 + 2 * 32 * 64)
    attention = 2 * positions * positions * (2 * 2 * 32)
    first, second = 2 * (4 * 32) * 32, 2 * 32 * 32  # one token a tile
    assert sum(vision_parts(MODEL, work).values()) == 2 * (patch + linear + attention + first + second)
    assert training_flops(MODEL, work, ["vision"]) == 2 * (
        2 * patch + 3 * (linear + attention) + 2 * first + 2 * second
    )
    # The projector's norm lies before its first linear layer: reaching it takes that layer's second product.
    assert training_flops(MODEL, work, ["projector"]) == 2 * (patch + linear + attention + 3 * first + 3 * second)
    assert training_flops(MODEL, work, ["language"]) == 2 * (patch + linear + attention + first + second)


def test_published_model_is_near_six_flops_a_parameter_and_token():
    from longvita.config.schema import ModelConfig

    model = ModelConfig()
    work = Workload(tokens=1, attention_pairs=1, loss_tokens=1)
    # 14.77e9 parameters, less the embedding, which is looked up.
    assert training_flops(model, work, ["language"]) == pytest.approx(6 * (14.77e9 - 152064 * 5120), rel=0.01)
