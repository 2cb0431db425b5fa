"""Memory of the computation of one prefill chunk, in addition to weights and KV cache."""

from __future__ import annotations

from longvita.config.schema import Config
from longvita.config.sizes import local_query_groups

ELEMENT_BYTES = {"bf16": 2, "fp32": 4}
_FP32 = 4


def chunk_bytes(rows: int, tiles: int, config: Config) -> int:
    """Estimate the bytes that a chunk of `rows` tokens, with `tiles` tiles among them, needs at most on a rank.

    The largest of three moments (a layer's MLP, its attention, the vision encoder) and what is live during all of them.
    An upper estimate: it counts kernels that are not fused, and collectives that copy.
    """
    language, layout, element = config.model.language, config.layout, ELEMENT_BYTES[config.training.precision]
    own = -(-rows // layout.context_parallel)
    residual = -(-own // layout.tensor_parallel) if layout.sequence_parallel else own
    loaded = -(-tiles // (layout.tensor_parallel * layout.context_parallel))
    hidden, angles = language.hidden_size * element, 2 * language.head_dim * _FP32
    # The stages exchange two chunks' hidden states at most, and one row has logits.
    always = 2 * residual * hidden + own * angles + 3 * language.vocab_size * _FP32
    always += 2 * residual * hidden if layout.pipeline_parallel > 1 else 0
    always += loaded * 3 * config.model.vision.image_size**2 * _FP32
    mlp = 3 * own * hidden + 5 * own * language.ffn_hidden_size // layout.tensor_parallel * element
    return always + max(mlp, _attention_bytes(rows, own, config), _vision_bytes(own, loaded, config))


def _attention_bytes(rows: int, own: int, config: Config) -> int:
    """Bytes of a layer's attention to the chunk and to the cached tokens."""
    language, layout, element = config.model.language, config.layout, ELEMENT_BYTES[config.training.precision]
    query, keys = language.query_width // layout.tensor_parallel, local_query_groups(config) * language.head_dim
    # Queries, keys and values before and after the rotary embedding; results in fp32, before and after a merge.
    local = own * (language.hidden_size * element + 2 * (query + 2 * keys) * element + query * (element + 3 * _FP32))
    # Every rank attends with the queries of all, and the results travel.
    shared = rows * query * (element + 4 * _FP32) if layout.context_parallel > 1 else 0
    return local + shared


def _vision_bytes(own: int, loaded: int, config: Config) -> int:
    """Bytes of the vision encoder and projector, for the tiles that a rank encodes at once of the `loaded` ones."""
    model, vision, element = config.model, config.model.vision, ELEMENT_BYTES[config.training.precision]
    encoded = min(loaded, config.training.vision_chunk_size)
    pixels = encoded * 3 * vision.image_size**2 * (element if element < _FP32 else 0)
    widths = 4 * vision.hidden_size + 2 * vision.ffn_hidden_size
    encoder = pixels + encoded * vision.sequence_length * widths * element
    wide = vision.hidden_size * model.projector.downsample**2
    projector = encoded * model.tokens_per_tile * (2 * wide + 2 * model.language.hidden_size) * element
    return 2 * own * model.language.hidden_size * element + max(encoder, projector)
