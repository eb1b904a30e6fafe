"""Mutators: (random.Random, bytes, other seeds) -> damaged or hostile bytes, the same for the same generator."""

import io
import json
import pickletools
import re
import struct
import zipfile
import zlib

NUMBERS = (0, 1, -1, 2, 127, 128, 255, 256, 1 << 15, (1 << 16) - 1, 1 << 16, (1 << 24) + 1, (1 << 31) - 1, 1 << 31,
           (1 << 32) - 1, 1 << 32, 1 << 40, (1 << 62) + 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)  # fmt: skip
WORDS = (b"\0", b"\xff\xff", b"../", b"/etc/passwd", b"%s%n", b'"', b"\n", b"NaN", b"1e999", b"-1", b"9" * 400)


def number(rng, width: int) -> bytes:
    """An interesting number of `width` bytes, of either byte order."""
    value = rng.choice(NUMBERS) & ((1 << 8 * width) - 1)
    return value.to_bytes(width, rng.choice(("little", "big")))


def block(rng, data: bytes, most: int = 64) -> tuple[int, int]:
    """(start, end) of a random part, mostly a short one."""
    start = rng.randrange(len(data) + 1)
    return start, min(len(data), start + rng.randint(1, most if rng.random() < 0.8 else max(most, len(data))))


def _flip(rng, data, others):
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def _overwrite(rng, data, others):
    start, end = block(rng, data, 16)
    return data[:start] + rng.randbytes(end - start) + data[end:]


def _truncate(rng, data, others):
    return data[: rng.randrange(len(data))]


def _delete(rng, data, others):
    start, end = block(rng, data)
    return data[:start] + data[end:]


def _duplicate(rng, data, others):
    start, end = block(rng, data)
    return data[:end] + data[start:end] * rng.choice((1, 1, 2, 50)) + data[end:]


def _insert(rng, data, others):
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.choice((rng.choice(WORDS), rng.randbytes(8), bytes(64))) + data[at:]


def _splice(rng, data, others):
    other = rng.choice(others)
    return data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other) + 1) :]


def _transplant(rng, data, others):
    start, end = block(rng, other := rng.choice(others))
    at = rng.randrange(len(data) + 1)
    return data[:at] + other[start:end] + data[at + (end - start) * rng.randrange(2) :]


def _integer(rng, data, others):
    """An interesting number over an aligned field; those at the beginning, where headers are, more often."""
    width = rng.choice((1, 2, 4, 4, 8))
    reach = len(data) if rng.random() < 0.5 else min(len(data), 96)
    at = rng.randrange(max(reach // width, 1)) * width
    return data[:at] + number(rng, width) + data[at + width :]


def _enlarge(rng, data, others):
    """A field that may be a length gets larger by a power of two."""
    width = rng.choice((2, 4, 8))
    at = rng.randrange(max(len(data) - width, 1))
    order = rng.choice(("little", "big"))
    value = int.from_bytes(data[at : at + width], order) + (1 << rng.randrange(8 * width))
    return data[:at] + (value & ((1 << 8 * width) - 1)).to_bytes(width, order) + data[at + width :]


def _digits(rng, data, others):
    """A number written in digits becomes another."""
    found = list(re.finditer(rb"-?\d+", data[:20000]))
    if not found:
        return _integer(rng, data, others)
    match = rng.choice(found)
    text = rng.choice((b"%d" % rng.choice(NUMBERS), b"9" * 5000, b"1e999", b"-0", b"0" * 40, b"1.5"))
    return data[: match.start()] + text + data[match.end() :]


GENERIC = (_flip, _overwrite, _truncate, _delete, _duplicate, _insert, _splice, _transplant, _integer, _integer,
           _enlarge, _digits)  # fmt: skip


def generic(rng, data: bytes, others: list[bytes]) -> bytes:
    """One to three kinds of damage that know nothing of the format."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        data = rng.choice(GENERIC)(rng, data, others) if data else rng.randbytes(16)
    return data


def same_length(rng, data: bytes, others: list[bytes]) -> bytes:
    """As `generic`, without a byte more or less."""
    for _ in range(rng.choice((1, 1, 2, 5))):
        data = rng.choice((_flip, _overwrite, _integer))(rng, data, others)[: len(data)]
    return data


# --- pickles ---

_CALLS = (b"cposix\nsystem\n", b"\x8c\x02os\x8c\x06system\x93", b"cbuiltins\neval\n", b"cfuzz_canary\nrun\n",
          b"\x8c\x0cfuzz_canary\x8c\x03run\x93", b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nSize\n",
          b"ccollections\nOrderedDict\n", b"c_codecs\nencode\n", b"ctorch.storage\n_load_from_bytes\n",
          b"cnumpy.core.multiarray\n_reconstruct\n", b"cbuiltins\nset\n", b"ccollections\nCounter\n",
          b"ctorch\nFloatStorage\n", b"ctorch\nDevice\n", b"cargparse\nNamespace\n")  # fmt: skip
_ARGS = (b")", b"]\x85", b"}\x85", b"\x8c\x04true\x85", b"(K\x00K\x01t", b"h\x00\x85", b"C\x02\x80\x02\x85", b"N\x85",
         b"\x8c\x01a\x8c\x01b\x86", b"(h\x00K\x00\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f\x85K\x01\x85\x89Nt")  # fmt: skip
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
_LENGTHS = (b"\x8e" + b"\xff" * 7 + b"\x7f", b"\x8d" + struct.pack("<Q", 1 << 40), b"\x96" + struct.pack("<Q", 1 << 62),
            b"B\xff\xff\xff\x7f", b"X\xff\xff\xff\xff", b"T\xff\xff\xff\x7f", b"\x8b\xff\xff\xff\x7f", b"\x8b\xff\xff\xff\xff",
            b"\x95" + b"\xff" * 8, b"r\xff\xff\xff\xff0", b"j\xff\xff\xff\x7f", b"I" + b"9" * 5000 + b"\n",
            b"L" + b"7" * 5000 + b"L\n", b"\x8a\xff" + b"\x7f" * 255, b"Fnan\n", b"G\x7f\xf0\0\0\0\0\0\0")  # fmt: skip
_ODD = (b"b", b"Q", b"Px\n", b"\x82\x01", b"\x83\x01\x01", b"\x84\x01\x01\x01\x01", b"(ios\nsystem\n", b"o", b"\x97", b"\x98",
        b"R", b"\x81", b"\x92", b"0", b"1", b"2", b"(", b"t", b"l", b"d", b"e", b"u", b"s", b"a", b"\x90", b"\x91",
        b".", b"\x94", b"h\x00", b"g0\n", b"\x93", b"\x80\x09", b"N", b"\x88", b"}", b"]", b"\x8f")  # fmt: skip


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
        odd = ("../x", "/etc/passwd", f"{root}/../../x", f"{root}/data.pkl", f"{root}/data/0", "a" * 60000, "\udcff.pkl",
               f"{root}/constants.pkl", "x\0y", f"{root}/byteorder")  # fmt: skip
        members.insert(rng.randrange(len(members) + 1), (rng.choice(odd).encode("utf-8", "replace").decode(), content))
    elif choice == 5:
        raw = _rewritten([*members, ("archive/bomb", b"BOMB")])
        return raw.replace(b"BOMB", _ZEROS[:16000]) if rng.random() < 0.5 else _deflated(rng, members)
    else:
        return _central(rng, data)
    return _rewritten(members)


def _deflated(rng, members) -> bytes:
    """Compressed members, the pickle among them one that unpacks to 16 MiB, its size declared rightly or as 10 bytes."""
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


# --- text ---


def _hostile_value(rng):
    return rng.choice((rng.choice(NUMBERS), -1, 10**400, 1e308, float("nan"), float("inf"), None, True, "", "x" * 70000,
                       "../../etc/passwd", "\0", "\udcff", [], {}, [[]], {"": 0}, [0] * 1000, [1 << 62, 1 << 62], "F32",
                       "BOOL", "F8_E4M3", "I64", [0, 1 << 62], 1.5, "9" * 5000))  # fmt: skip


def jsoned(rng, data: bytes, others: list[bytes]) -> bytes:
    """A value, a key or the depth of some JSON becomes another; or its bytes are damaged."""
    choice = rng.randrange(10)
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError):
        choice = 0
    if choice == 0:
        return generic(rng, data, others)
    if choice == 1:
        depth = rng.choice((300, 2000, 100000))
        return rng.choice((b"[" * depth + b"]" * depth, b'{"a":' * depth + b"1" + b"}" * depth, b"[" * depth))
    if choice == 2:
        return data.replace(b"{", b'{"a":1,"a":2,', 1)
    nodes = []

    def walk(node):
        for key in node if isinstance(node, dict) else range(len(node)):
            nodes.append((node, key))
            if isinstance(node[key], (dict, list)):
                walk(node[key])

    if isinstance(tree, (dict, list)):
        walk(tree)
    for _ in range(rng.choice((1, 1, 2, 4))):
        if nodes:
            node, key = rng.choice(nodes)
            if isinstance(node, dict) and key in node and rng.random() < 0.25:
                node[str(_hostile_value(rng))[:100]] = node.pop(key)
            elif isinstance(node, list) or key in node:
                node[key] = _hostile_value(rng)
    return json.dumps(tree if rng.random() < 0.95 else _hostile_value(rng)).encode("utf-8", "surrogatepass")


def table(rng, data: bytes, others: list[bytes]) -> bytes:
    """Fields of a CSV: giant, quoted, with NULs, paths or numbers that no one means; lines and columns too many."""
    if rng.random() < 0.3:
        return generic(rng, data, others)
    lines = [line.split(b",") for line in data.split(b"\n")]
    for _ in range(rng.choice((1, 1, 2, 5))):
        row = rng.choice(lines)
        k = rng.randrange(len(row))
        value = rng.choice((b"x" * 200000, b"x" * 300, "é".encode() * 120, b'"', b'""', b'"a\nb"', b"\0", b"../../etc/passwd", b"/",
                            b".", b"..", b"9" * 5000, b"9" * 30, b"-1", b"nan", b"inf", b"1e400", b"\xff", b"", b" ",
                            b"train", b"test", "\u0661\u0662".encode(), b"\r", b"\xef\xbb\xbf", b"1_000", b"=cmd()"))  # fmt: skip
        choice = rng.randrange(6)
        if choice < 4:
            row[k] = value
        elif choice == 4:
            row.insert(k, value)
        else:
            lines.insert(rng.randrange(len(lines)), list(row))
    return b"\n".join(b",".join(row) for row in lines)
