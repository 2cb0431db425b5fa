from __future__ import annotations

import numpy as np
import pytest
import torch

from longvita.data.batch import IGNORED_LABEL
from longvita.data.chat_template import EncodedSample
from longvita.data.loading.assemble import MAX_PADDING_DOCUMENT, MIXED_SOURCES, PlacedDocument, assemble
from longvita.data.media.image import normalise

PADDING = 99


def document(first, length, source="a", sequence=0, tiles=0, pixels=0):
    ids = np.arange(first, first + length)
    labels = np.where(np.arange(length) < length // 2, IGNORED_LABEL, ids)
    encoded = EncodedSample(ids, labels, np.arange(tiles) + 1)
    colours = np.full((pixels, 4, 4, 3), first, np.uint8)
    return PlacedDocument(encoded, source, sequence, np.zeros(tiles, np.int64), colours)


def test_isolated_documents():
    batch = assemble(
        [document(10, 4, tiles=2, pixels=2), document(20, 3, "b", tiles=1, pixels=1)], 10, PADDING, True, 4
    )
    assert batch.input_ids.tolist() == [[10, 11, 12, 13, 20, 21, 22, 99, 99, 99]]
    assert batch.labels.tolist() == [[-100, 12, 13, -100, 21, 22, -100, -100, -100, -100]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 0, 1, 2, 0, 1, 2]]
    assert batch.cu_seqlens.tolist() == [0, 4, 7, 10]
    assert batch.cu_seqlens.dtype == torch.int32
    assert batch.document_sources == ["a", "b", ""]
    assert (batch.max_seqlen, batch.padding_tokens) == (4, 3)
    assert batch.tile_starts.tolist() == [1, 2, 5]
    expected = normalise(np.repeat(np.asarray([10, 10, 20], np.uint8), 48).reshape(3, 4, 4, 3))
    np.testing.assert_array_equal(batch.tiles, expected)


def test_one_context_a_sequence():
    documents = [document(10, 3), document(20, 3, "b"), document(30, 2, "b", sequence=1)]
    batch = assemble(documents, 9, PADDING, False, 4)
    assert batch.cu_seqlens.tolist() == [0, 6, 8, 9]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 5, 0, 1, 0]]
    assert batch.document_sources == [MIXED_SOURCES, "b", ""]
    # A sample's last token does not predict the next sample.
    assert batch.labels.tolist() == [[11, 12, -100, 21, 22, -100, 31, -100, -100]]


def test_a_full_batch_has_no_padding():
    batch = assemble([document(10, 4)], 4, PADDING, True, 4)
    assert batch.cu_seqlens.tolist() == [0, 4]
    assert batch.document_sources == ["a"]
    assert batch.padding_tokens == 0


def test_an_empty_batch_is_all_padding():
    batch = assemble([], 5, PADDING, True, 4)
    assert batch.input_ids.tolist() == [[PADDING] * 5]
    assert (batch.labels == IGNORED_LABEL).all()
    assert batch.tiles.shape == (0, 3, 4, 4)
    assert batch.tile_starts.dtype == batch.tile_owners.dtype == torch.int64


def test_long_padding_comes_in_pieces():
    length = 3 + 2 * MAX_PADDING_DOCUMENT + 7
    batch = assemble([document(10, 3)], length, PADDING, True, 4)
    assert batch.cu_seqlens.tolist() == [0, 3, 3 + MAX_PADDING_DOCUMENT, 3 + 2 * MAX_PADDING_DOCUMENT, length]
    assert batch.document_sources == ["a", "", "", ""]
    assert batch.max_seqlen == MAX_PADDING_DOCUMENT


def test_too_many_documents():
    with pytest.raises(ValueError, match="documents of 5 tokens do not fit a micro batch of 4"):
        assemble([document(10, 5)], 4, PADDING, True, 4)


def test_moving_a_batch():
    batch = assemble([document(10, 4, tiles=1, pixels=1)], 6, PADDING, True, 4)
    moved = batch.to("cpu")
    assert moved.document_sources == batch.document_sources
    torch.testing.assert_close(moved.tiles, batch.tiles)
