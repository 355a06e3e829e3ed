"""Reads TensorBoard's event files by their published format: tensorboardX only writes them.

A file is a sequence of TFRecord frames: length (uint64), masked CRC-32C of the length, the record,
masked CRC-32C of the record; all little-endian.
"""

import struct
from collections.abc import Iterator
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event

_POLYNOMIAL = 0x82F63B78


def read_records(file: Path) -> Iterator[Event]:
    """The events of a file; every checksum must be right."""
    content = file.read_bytes()
    at = 0
    while at < len(content):
        header = content[at : at + 8]
        (length,) = struct.unpack("<Q", header)
        (of_header,) = struct.unpack_from("<I", content, at + 8)
        record = content[at + 12 : at + 12 + length]
        (of_record,) = struct.unpack_from("<I", content, at + 12 + length)
        assert of_header == _masked_crc(header)
        assert of_record == _masked_crc(record)
        yield Event.FromString(record)
        at += 16 + length


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """Values by step of every tag in all files of a folder, as TensorBoard shows them."""
    found: dict[str, dict[int, float]] = {}
    for file in sorted(folder.iterdir()):
        for event in read_records(file):
            if event.HasField("session_log"):
                for values in found.values():
                    for step in [step for step in values if step >= event.step]:
                        del values[step]
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = value.simple_value
    return found


def _masked_crc(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (_POLYNOMIAL if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
