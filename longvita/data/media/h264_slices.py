"""Which packets of an H.264 film hold a frame that no other frame depends on."""

from __future__ import annotations

from collections.abc import Iterator

SLICES = range(1, 6)
"""Types of the units that hold pixels."""
START_CODE = b"\0\0\1"


def size_of_length(extradata: bytes | None) -> int:
    """Bytes of the length before each unit, by the header of a film; 0 if start codes divide the units."""
    return (extradata[4] & 3) + 1 if extradata and len(extradata) > 4 and extradata[0] == 1 else 0


def is_disposable(packet: bytes, length_bytes: int) -> bool:
    """Whether a packet has slices, and each is marked as one that no other frame depends on.

    Not so if its units cannot be found: a decoder that skips frames does not report a packet whose slices are lost.
    length_bytes: as `size_of_length` returns it.
    """
    headers = list(_headers_by_length(packet, length_bytes) if length_bytes else _headers_by_code(packet))
    slices = [header for header in headers if header & 0x1F in SLICES]
    return bool(slices) and -1 not in headers and not any(header & 0x60 for header in slices)


def _headers_by_length(packet: bytes, length_bytes: int) -> Iterator[int]:
    """The first byte of each unit; -1 for a length that does not fit."""
    place = 0
    while place < len(packet):
        start = place + length_bytes
        place = start + int.from_bytes(packet[place:start], "big")
        yield packet[start] if start < place <= len(packet) else -1


def _headers_by_code(packet: bytes) -> Iterator[int]:
    """The first byte of each unit."""
    place = packet.find(START_CODE)
    while 0 <= place < len(packet) - len(START_CODE):
        yield packet[place + len(START_CODE)]
        place = packet.find(START_CODE, place + len(START_CODE))
