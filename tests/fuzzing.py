"""Mutators: (random.Random, bytes, other seeds) -> damaged or hostile bytes, the same for the same generator."""

import json
import re

NUMBERS = (
    0,
    1,
    -1,
    2,
    127,
    128,
    255,
    256,
    1 << 15,
    (1 << 16) - 1,
    1 << 16,
    (1 << 24) + 1,
    (1 << 31) - 1,
    1 << 31,
    (1 << 32) - 1,
    1 << 32,
    1 << 40,
    (1 << 62) + 1,
    (1 << 63) - 1,
    1 << 63,
    (1 << 64) - 1,
)
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


GENERIC = (
    _flip,
    _overwrite,
    _truncate,
    _delete,
    _duplicate,
    _insert,
    _splice,
    _transplant,
    _integer,
    _integer,
    _enlarge,
    _digits,
)


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


# --- text ---


def _hostile_value(rng):
    return rng.choice(
        (
            rng.choice(NUMBERS),
            -1,
            10**400,
            1e308,
            float("nan"),
            float("inf"),
            None,
            True,
            "",
            "x" * 70000,
            "../../etc/passwd",
            "\0",
            "\udcff",
            [],
            {},
            [[]],
            {"": 0},
            [0] * 1000,
            [1 << 62, 1 << 62],
            "F32",
            "BOOL",
            "F8_E4M3",
            "I64",
            [0, 1 << 62],
            1.5,
            "9" * 5000,
        )
    )


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
        value = rng.choice(
            (
                b"x" * 200000,
                b"x" * 300,
                "é".encode() * 120,
                b'"',
                b'""',
                b'"a\nb"',
                b"\0",
                b"../../etc/passwd",
                b"/",
                b".",
                b"..",
                b"9" * 5000,
                b"9" * 30,
                b"-1",
                b"nan",
                b"inf",
                b"1e400",
                b"\xff",
                b"",
                b" ",
                b"train",
                b"test",
                "\u0661\u0662".encode(),
                b"\r",
                b"\xef\xbb\xbf",
                b"1_000",
                b"=cmd()",
            )
        )
        choice = rng.randrange(6)
        if choice < 4:
            row[k] = value
        elif choice == 4:
            row.insert(k, value)
        else:
            lines.insert(rng.randrange(len(lines)), list(row))
    return b"\n".join(b",".join(row) for row in lines)
