"""Changes of valid files that hypothesis can draw, repeat and shrink: bytes anywhere, or one value of JSON data."""

from __future__ import annotations

import copy
import json
import math
import struct
from typing import Any

from hypothesis import strategies as st

ODD_BYTES = [b"", b"\0", b"\xff", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0" * 16, b"\x80", b"\n", b"\t", b'"',
             b"<", b"[" * 200, b"{", b"-1", b"1e999", b"nan", b"../../x", b"\xef\xbb\xbf", b"\xed\xa0\x80"]  # fmt: skip
ODD_VALUES: list[Any] = [None, True, False, 0, -1, 1, 3, 10**6, 10**30, 10**400, 0.0, -0.5, 1e-300, 1e300, math.nan,
                         math.inf, "", "x", "../x", "/etc/passwd", "\x1b[2J", "\u202e", "x" * 500, [], [[]], [1], ["a"],
                         {}, {"a": 1}, [None] * 3, {"": {}}]  # fmt: skip

Edit = tuple[str, float, bytes]
Change = tuple[float, int, bool]

byte_edits: st.SearchStrategy[list[Edit]] = st.lists(
    st.tuples(
        st.sampled_from(["put", "insert", "cut", "end", "repeat", "number"]),
        st.floats(0, 1),
        st.sampled_from(ODD_BYTES) | st.binary(min_size=1, max_size=8),
    ),
    min_size=1,
    max_size=6,
)
value_edits: st.SearchStrategy[list[Change]] = st.lists(
    st.tuples(st.floats(0, 1), st.integers(0, len(ODD_VALUES) - 1), st.booleans()), min_size=1, max_size=3
)


def mutated(data: bytes, edits: list[Edit]) -> bytes:
    """The bytes after these edits; a place is a share of the length."""
    for kind, share, value in edits:
        at = int(share * len(data))
        after = at + len(value)
        if kind == "put":
            data = data[:at] + value + data[after:]
        elif kind == "insert":
            data = data[:at] + value + data[at:]
        elif kind == "cut":
            data = data[:at] + data[at + 1 + 16 * len(value) :]
        elif kind == "end":
            data = data[:at]
        elif kind == "repeat":
            data = data[:after] + data[at:after] * 3 + data[after:]
        else:  # a length or a count that claims what it likes
            data = data[:at] + struct.pack("<I", int.from_bytes(value[:4], "big") or 0xFFFFFFF0) + data[at + 4 :]
    return data


def changed(data: Any, edits: list[Change]) -> Any:
    """JSON data after these edits: one value below it is another, or is gone."""
    data = copy.deepcopy(data)
    for share, which, remove in edits:
        places = list(_places(data))
        if not places:
            return data
        holder, key = places[min(int(share * len(places)), len(places) - 1)]
        if remove:
            del holder[key]
        else:
            holder[key] = copy.deepcopy(ODD_VALUES[which])
    return data


def _places(data: Any) -> Any:
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in list(items):
        yield data, key
        yield from _places(value)


def as_json(data: Any) -> bytes:
    """What json.loads reads again, whatever the values."""
    return json.dumps(data).encode()
