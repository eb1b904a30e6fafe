"""Mutators of pickles, of torch's archives and legacy files, and of safetensors."""

import io
import pickletools
import re
import struct
import zipfile
import zlib

from fuzzing import NUMBERS, generic, jsoned, number

# --- pickles ---

_CALLS = (
    b"cposix\nsystem\n",
    b"\x8c\x02os\x8c\x06system\x93",
    b"cbuiltins\neval\n",
    b"cfuzz_canary\nrun\n",
    b"\x8c\x0cfuzz_canary\x8c\x03run\x93",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch\nSize\n",
    b"ccollections\nOrderedDict\n",
    b"c_codecs\nencode\n",
    b"ctorch.storage\n_load_from_bytes\n",
    b"cnumpy.core.multiarray\n_reconstruct\n",
    b"cbuiltins\nset\n",
    b"ccollections\nCounter\n",
    b"ctorch\nFloatStorage\n",
    b"ctorch\nDevice\n",
    b"cargparse\nNamespace\n",
)
_ARGS = (
    b")",
    b"]\x85",
    b"}\x85",
    b"\x8c\x04true\x85",
    b"(K\x00K\x01t",
    b"h\x00\x85",
    b"C\x02\x80\x02\x85",
    b"N\x85",
    b"\x8c\x01a\x8c\x01b\x86",
    b"(h\x00K\x00\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f\x85K\x01\x85\x89Nt",
)
_BOMBS = (
    b"]" + b"2\x86" * 60,  # tuples of tuples: 2**60 elements to whoever prints them
    b"]" * 3000 + b"a" * 2999,  # deep
    b")" + b"\x85" * 20000,
    b"(" * 500,
    b"}" + b"q\x000(h\x00h\x00l" * 40,
    b"](" + b"K\x00" * 200 + b"eq\x00" + b"ctorch\nSize\nh\x00\x85R" * 40,
    b"\x8c\x03abcq\x00" + b"c_codecs\nencode\nh\x00h\x00\x86R" * 40,
    b"(" + b"2" * 2000 + b"l",
)
_LENGTHS = (
    b"\x8e" + b"\xff" * 7 + b"\x7f",
    b"\x8d" + struct.pack("<Q", 1 << 40),
    b"\x96" + struct.pack("<Q", 1 << 62),
    b"B\xff\xff\xff\x7f",
    b"X\xff\xff\xff\xff",
    b"T\xff\xff\xff\x7f",
    b"\x8b\xff\xff\xff\x7f",
    b"\x8b\xff\xff\xff\xff",
    b"\x95" + b"\xff" * 8,
    b"r\xff\xff\xff\xff0",
    b"j\xff\xff\xff\x7f",
    b"I" + b"9" * 5000 + b"\n",
    b"L" + b"7" * 5000 + b"L\n",
    b"\x8a\xff" + b"\x7f" * 255,
    b"Fnan\n",
    b"G\x7f\xf0\0\0\0\0\0\0",
)
_ODD = (
    b"b",
    b"Q",
    b"Px\n",
    b"\x82\x01",
    b"\x83\x01\x01",
    b"\x84\x01\x01\x01\x01",
    b"(ios\nsystem\n",
    b"o",
    b"\x97",
    b"\x98",
    b"R",
    b"\x81",
    b"\x92",
    b"0",
    b"1",
    b"2",
    b"(",
    b"t",
    b"l",
    b"d",
    b"e",
    b"u",
    b"s",
    b"a",
    b"\x90",
    b"\x91",
    b".",
    b"\x94",
    b"h\x00",
    b"g0\n",
    b"\x93",
    b"\x80\x09",
    b"N",
    b"\x88",
    b"}",
    b"]",
    b"\x8f",
)


def fragment(rng) -> bytes:
    """Opcodes that a hostile pickle would hold."""
    kind = rng.randrange(6)
    if kind < 2:
        call = rng.choice((b"R", b"R", b"\x81", b"\x92", b"b", b"o"))
        return rng.choice(_CALLS) + rng.choice(_ARGS) + call + rng.choice((b"", b"0"))
    return rng.choice((_BOMBS, _LENGTHS, _ODD, _ODD)[kind - 2])


def _whole_number(rng) -> bytes:
    value = rng.choice((*NUMBERS, 10**5000, -(1 << 100)))
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw if len(raw) < 256 else b"\x8b" + struct.pack("<i", len(raw)) + raw


def pickled(rng, data: bytes, others: list[bytes]) -> bytes:
    """Damage at the boundaries of opcodes: hostile ones put in, left out, repeated, and numbers changed."""
    places = []
    try:
        for opcode, arg, at in pickletools.genops(data):
            places.append((at, opcode.name, arg))
    except Exception:
        pass
    if len(places) < 3:
        return generic(rng, data, others)
    for _ in range(rng.choice((1, 1, 2, 4))):
        k = rng.randrange(1, len(places) - 1)
        (at, _, arg), after = places[k], places[k + 1][0]
        numbers = [i for i, p in enumerate(places[:-1]) if type(p[2]) is int and p[1].startswith(("BININT", "LONG"))]
        choice = rng.randrange(5)
        if choice == 0 and numbers:
            k = rng.choice(numbers)
            data = data[: places[k][0]] + _whole_number(rng) + data[places[k + 1][0] :]
        elif choice == 1:
            data = data[:at] + data[after:]
        elif choice == 2:
            data = data[:at] + data[at:after] * rng.choice((2, 3, 300)) + data[after:]
        elif choice == 3 and isinstance(arg, bytes) and len(arg) > 8:  # a file within
            data = data.replace(
                arg, (pickled if rng.random() < 0.7 else generic)(rng, arg, others)[: len(arg)].ljust(len(arg))
            )
        else:
            data = data[:at] + fragment(rng) + data[at:]
        break_after = rng.random() < 0.7
        if break_after:
            break
    return data


def rows_of_pickles(rng, data: bytes, others: list[bytes]) -> bytes:
    """torch's legacy files: several pickles one after the other, of which one is damaged."""
    ends, stream = [], io.BytesIO(data)
    try:
        while True:
            for _ in pickletools.genops(stream):
                pass
            ends.append(stream.tell())
    except Exception:
        pass
    if not ends:
        return generic(rng, data, others)
    k = rng.randrange(len(ends))
    begin = ends[k - 1] if k else 0
    return data[:begin] + pickled(rng, data[begin : ends[k]], others) + data[ends[k] :]


# --- archives ---

_ZEROS = zlib.compress(bytes(1 << 24), 9)[2:-4]


def _rewritten(members: list[tuple[str, bytes]], method=zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return stream.getvalue()


def _central(rng, raw: bytes) -> bytes:
    """Numbers in the central directory and in the records at the end become others."""
    raw = bytearray(raw)
    entries = [m.start() for m in re.finditer(rb"PK\x01\x02", bytes(raw))]
    end = raw.rfind(b"PK\x05\x06")
    for _ in range(rng.choice((1, 1, 3))):
        if entries and rng.random() < 0.75:  # version .. method, CRC, sizes, lengths, local offset
            field, width = rng.choice(((6, 2), (8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2), (42, 4)))
            at = rng.choice(entries) + field
            value = struct.pack("<I", rng.randrange(len(raw)))[:width] if field == 42 else number(rng, width)
            if field in (20, 24) and rng.random() < 0.5:  # both sizes alike
                at, value, width = at - field + 20, number(rng, 4) * 2, 8
        else:
            field, width = rng.choice(((8, 2), (10, 2), (12, 4), (16, 4), (20, 2)))
            at, value = max(end, 0) + field, number(rng, width)
        raw[at : at + width] = value
    return bytes(raw)


def zipped(rng, data: bytes, others: list[bytes]) -> bytes:
    """A torch archive: a hostile pickle with a right checksum, a bomb, names that lead elsewhere, wrong directories."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(m.filename, archive.read(m)) for m in archive.infolist()]
    k, choice = rng.randrange(len(members)), rng.randrange(8)
    name, content = members[k]
    if choice < 3:
        place = next(i for i, m in enumerate(members) if m[0].endswith("data.pkl"))
        members[place] = (members[place][0], pickled(rng, members[place][1], others))
    elif choice == 3:
        members[k] = (name, generic(rng, content or b"x", others))
    elif choice == 4:
        root = name.split("/")[0]
        odd = (
            "../x",
            "/etc/passwd",
            f"{root}/../../x",
            f"{root}/data.pkl",
            f"{root}/data/0",
            "a" * 60000,
            "\udcff.pkl",
            f"{root}/constants.pkl",
            "x\0y",
            f"{root}/byteorder",
        )
        members.insert(rng.randrange(len(members) + 1), (rng.choice(odd).encode("utf-8", "replace").decode(), content))
    elif choice == 5:
        raw = _rewritten([*members, ("archive/bomb", b"BOMB")])
        return raw.replace(b"BOMB", _ZEROS[:16000]) if rng.random() < 0.5 else _deflated(rng, members)
    else:
        return _central(rng, data)
    return _rewritten(members)


def _deflated(rng, members) -> bytes:
    """Compressed members, the pickle among them one that unpacks to 16 MiB, its size declared rightly or as 10."""
    members = [(n, d + bytes(1 << 24) if n.endswith("data.pkl") else d) for n, d in members]
    raw = _rewritten(members, zipfile.ZIP_DEFLATED)
    return raw if rng.random() < 0.5 else raw.replace(struct.pack("<I", 1 << 24), struct.pack("<I", 10))


def safetensors(rng, data: bytes, others: list[bytes]) -> bytes:
    """Offsets, shapes and types of the header, its length, and its nesting."""
    length = int.from_bytes(data[:8], "little")
    header, rest = data[8 : 8 + length], data[8 + length :]
    choice = rng.randrange(6)
    if choice == 0:
        return number(rng, 8) + data[8:]
    if choice == 1:
        header = generic(rng, header, others)
    elif choice == 2:
        depth = rng.choice((100, 5000, 200000))
        header = b'{"a":' + b"[" * depth + b"]" * depth + b"}"
    elif choice == 3:
        header = header[:-1].rstrip(b"}") + b'},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    else:
        header = jsoned(rng, header, others)
    return len(header).to_bytes(8, "little") + header + rest
