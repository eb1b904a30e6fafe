"""Mutators of pictures, sound and video that keep checksums right, so that the damage is met where it does harm."""

import re
import struct
import zlib

from fuzzing import generic, number

# --- pictures ---


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    found, at = [], 8
    while at + 12 <= len(data):
        (size,) = struct.unpack(">I", data[at : at + 4])
        found.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    return found


_BOMB = zlib.compress(bytes(1 << 25), 9)
_SIDES = (0, 1, 7, 40, 8192, 8193, 30000, 65500, 100000, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)


def png(rng, data: bytes, others: list[bytes]) -> bytes:
    """Chunks damaged with right checksums: sides, modes, palettes, compressed text and profiles, animations."""
    chunks = _chunks(data)
    choice, place = rng.randrange(9), rng.randrange(1, len(chunks))
    if choice < 3:
        head = bytearray(chunks[0][1])
        if choice < 2:
            head[:8] = struct.pack(">II", rng.choice(_SIDES), rng.choice(_SIDES))
        else:
            head[rng.randrange(8, 13)] = rng.choice((0, 1, 2, 3, 4, 6, 8, 16, 255))
        chunks[0] = (b"IHDR", bytes(head))
    elif choice == 3:
        text = rng.choice((b"zTXt", b"iTXt", b"iCCP"))
        head = b"a\0\x01\0\0\0" if text == b"iTXt" else b"a\0\0"
        chunks.insert(1, (text, head + _BOMB[: rng.choice((len(_BOMB), 1000))]))
    elif choice == 4:
        kind = rng.choice(
            (b"tRNS", b"PLTE", b"gAMA", b"cHRM", b"pHYs", b"acTL", b"fcTL", b"fdAT", b"sRGB", b"eXIf", b"XXXX")
        )
        chunks.insert(
            place, (kind, rng.choice((b"", rng.randbytes(rng.randrange(40)), bytes(800), number(rng, 4) * 7)))
        )
    elif choice == 5:
        chunks[place] = (chunks[place][0], generic(rng, chunks[place][1] or b"x", others))
    elif choice == 6:
        pixels = zlib.compress(rng.choice((bytes(1 << 22), b"\x05" * 5000, rng.randbytes(200), b"")), 9)
        chunks = [c for c in chunks if c[0] != b"IDAT"]
        chunks.insert(-1, (b"IDAT", pixels))
    elif choice == 7:
        chunks[place] = chunks[rng.randrange(len(chunks))]
    else:
        raw = data[:8] + b"".join(_chunk(*c) for c in chunks)
        at = rng.choice([m.start() - 4 for m in re.finditer(rb"IDAT|IHDR|PLTE|tRNS|IEND", raw)])
        return raw[:at] + number(rng, 4) + raw[at + 4 :]
    return data[:8] + b"".join(_chunk(*c) for c in chunks)


def jpeg(rng, data: bytes, others: list[bytes]) -> bytes:
    """Sides, components and tables of the frame, lengths of segments, segments put in."""
    frames = [m.start() for m in re.finditer(rb"\xff[\xc0\xc2]\x00", data)]
    choice = rng.randrange(5)
    if choice < 2 and frames:
        at = frames[0] + 5
        sides = struct.pack(">HH", *(rng.choice(_SIDES) & 0xFFFF for _ in range(2)))
        return data[:at] + sides + data[at + 4 :]
    if choice == 2 and frames:
        at = frames[0] + rng.randrange(4, 19)
        return data[:at] + bytes([rng.choice((0, 1, 2, 4, 17, 68, 255))]) + data[at + 1 :]
    if choice == 3:
        body = rng.choice(
            (
                b"Exif\0\0MM\0*" + number(rng, 4) * 5,
                b"JFIF\0" + rng.randbytes(9),
                b"ICC_PROFILE\0\x01\xff",
                b"MPF\0" + rng.randbytes(60),
                b"http://ns.adobe.com/xap/1.0/\0<x",
                rng.randbytes(30),
            )
        )
        return (
            data[:2]
            + b"\xff"
            + bytes([rng.choice((0xE0, 0xE1, 0xE2, 0xED, 0xFE, 0xDD, 0xDB, 0xC4, 0xDA))])
            + (struct.pack(">H", rng.choice((len(body) + 2, 0, 1, 65535))) + body + data[2:])
        )
    return generic(rng, data, others)


# --- sound and video ---


def riff(rng, data: bytes, others: list[bytes]) -> bytes:
    """Fields of a wav's (or avi's) chunks: kind, channels, rate, bits, sizes."""
    found = [m.start() for m in re.finditer(rb"fmt |data|fact|LIST|avih|strh|strf|idx1", data[:6000])]
    if not found or rng.random() < 0.2:
        return generic(rng, data, others)
    raw = bytearray(data)
    for _ in range(rng.choice((1, 1, 2))):
        at, width = rng.choice(found), rng.choice((2, 4))
        field = 4 if rng.random() < 0.25 else 8 + rng.randrange(12) * 2
        width = 4 if field == 4 else width
        raw[at + field : at + field + width] = number(rng, width)
    return bytes(raw)


def _ogg_sum(page: bytes) -> int:
    total = 0
    for byte in page:
        total = (total << 8 & 0xFFFFFFFF) ^ _OGG[(total >> 24) ^ byte]
    return total


def _ogg_table():
    table = []
    for k in range(256):
        value = k << 24
        for _ in range(8):
            value = (value << 1 ^ 0x04C11DB7 if value & 1 << 31 else value << 1) & 0xFFFFFFFF
        table.append(value)
    return table


_OGG = _ogg_table()


def ogg(rng, data: bytes, others: list[bytes]) -> bytes:
    """A page damaged under a right checksum: the first ones, which hold headers, more often."""
    starts = [m.start() for m in re.finditer(rb"OggS\x00", data)]
    if not starts or rng.random() < 0.2:
        return generic(rng, data, others)
    k = rng.randrange(min(len(starts), 2) if rng.random() < 0.6 else len(starts))
    begin, end = starts[k], [*starts, len(data)][k + 1]
    page = bytearray(data[begin:end])
    for _ in range(rng.choice((1, 1, 3))):
        width = rng.choice((1, 1, 2, 4))
        at = rng.randrange(6, max(7, min(len(page), 120 if rng.random() < 0.7 else len(page)) - width))
        page[at : at + width] = number(rng, width) if rng.random() < 0.7 else rng.randbytes(width)
    page[22:26] = bytes(4)
    page[22:26] = struct.pack("<I", _ogg_sum(bytes(page)))
    return data[:begin] + bytes(page) + data[end:]


def flac(rng, data: bytes, others: list[bytes]) -> bytes:
    """The description of the stream, which no checksum guards: block sizes, rate, channels, bits, samples."""
    if rng.random() < 0.4:
        return generic(rng, data, others)
    at = rng.randrange(4, min(len(data), 60))
    value = rng.choice((number(rng, rng.choice((1, 2, 4))), rng.randbytes(2)))
    return data[:at] + value + data[at + len(value) :]


_BOXES = (
    rb"moov|mvhd|trak|tkhd|edts|elst|mdia|mdhd|hdlr|minf|dinf|dref|url |stbl|stsd|stts|ctts|stss|stsc|stsz|stco|avc1|"
    rb"avcC|mp4a|esds|udta|meta|ilst|mdat|ftyp|free|pasp|btrt|sgpd|sbgp"
)
_ELEMENTS = (
    rb"\x1aE\xdf\xa3|\x18S\x80g|\x15I\xa9f|\x16T\xaek|\xae|\xe0|\xe1|\xb0|\xba|\xb5|\x9f|\x1fC\xb6u|\xa3|\xe7|"
    rb"\x86|\x63\xa2"
)


def video(rng, data: bytes, others: list[bytes]) -> bytes:
    """Fields of an mp4's boxes or an mkv's elements: sizes, counts, dimensions, times, parameter sets."""
    if data[:4] == b"RIFF":
        return riff(rng, data, others)
    mp4 = data[4:8] == b"ftyp"
    found = (
        [m.start() for m in re.finditer(_BOXES, data)]
        if mp4
        else [m.start() for m in re.finditer(_ELEMENTS, data[:2000])]
    )
    if not found or rng.random() < 0.3:
        return generic(rng, data, others)
    raw = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at, choice = rng.choice(found), rng.randrange(4)
        if mp4 and choice == 0:
            raw[max(at - 4, 0) : at] = number(rng, 4)
        elif choice == 1:
            at += rng.randrange(4, 60)
            raw[at : at + 1] = rng.randbytes(1)
        else:
            width = rng.choice((1, 2, 4, 8)) if not mp4 else rng.choice((2, 4, 4, 8))
            at += 4 + rng.randrange(12) * (width if mp4 else 1)
            raw[at : at + width] = number(rng, width)
    return bytes(raw)
