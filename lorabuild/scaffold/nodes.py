"""Where each key, value and table of a TOML text stands, and the text with one of them written, replaced or removed."""

from __future__ import annotations

import re
from typing import Any

from lorabuild.errors import UsageError
from lorabuild.manifest.layers import KeyPath
from lorabuild.manifest.places import Lines, keys_of
from lorabuild.scaffold.keys import dotted
from lorabuild.tomltext import key_written


class Nodes(Lines):
    """Where keys, values and tables stand: tree-sitter's nodes by path, with offsets in bytes."""

    def __init__(self, data: bytes):
        self.data = data
        self.newline = b"\r\n" if b"\r\n" in data else b"\n"
        self.pairs: dict[KeyPath, Any] = {}  # the whole of `key = value`
        self.values: dict[KeyPath, Any] = {}  # also the elements of lists
        self.tables: dict[KeyPath, Any] = {}  # from a header to the next one
        super().__init__(data)

    def _add_pair(self, node: Any, table: KeyPath) -> None:
        self.pairs.setdefault((*table, *keys_of(node.named_children[0])), node)
        super()._add_pair(node, table)

    def _add_value(self, node: Any, path: KeyPath) -> None:
        self.values.setdefault(path, node)
        super()._add_value(node, path)

    def _header(self, keys: KeyPath, node: Any) -> KeyPath:
        path = super()._header(keys, node)
        self.tables.setdefault(path, node)
        return path

    def written(self, path: KeyPath, raw: str) -> bytes:
        if path in self.values:
            return self._valued(self.values[path].start_byte, self.values[path].end_byte, raw)
        if any(known[: len(path)] == path for known in (*self.tables, *self.pairs)):
            raise UsageError(f"{dotted(path)}: a table; name a key of it, as in {dotted((*path, 'key'))}=…")
        for length in range(len(path) - 1, -1, -1):
            table, rest = path[:length], path[length:]
            if table in self.values and self.values[table].type == "inline_table":
                return self._into_inline(self.values[table], rest, raw)
            if not all(isinstance(part, str) for part in rest):
                continue
            if table in self.tables:
                return self._into_table(self.tables[table], rest, raw)
        if len(path) == 1:
            return self._at_the_top(path, raw)
        if of_its_table := [node for known, node in self.pairs.items() if known[0] == path[0] and _is_at_the_top(node)]:
            end = self._line_end(of_its_table[-1].end_byte)  # recipe.seed = 1, and no [recipe]
            return self._cut(end, end, self.newline + _line(path, raw))
        return self._new_table(path, raw)

    def _valued(self, start: int, end: int, raw: str) -> bytes:
        """The value in these bytes made `raw`; a comment that is set apart behind it stays in its column."""
        old = self.data[start:end].decode()
        if gap := re.compile(rb"  +(?=#)").match(self.data, end):
            apart = max(2, len(gap[0]) + len(old.rpartition("\n")[2]) - len(raw))
            return self._cut(start, gap.end(), raw.encode() + b" " * apart)
        return self._cut(start, end, raw.encode())

    def replaced(self, old: KeyPath, path: KeyPath, raw: str) -> bytes:
        """The line of `old` says `path` instead; a comment behind it was about the old key, and goes."""
        node = self.pairs[old]
        line = _line(path[-1:], raw)
        end = self.values[old].end_byte if self._inline(node) else self._line_end(node.end_byte)
        return self._cut(node.start_byte, end, line)

    def removed(self, path: KeyPath) -> bytes:
        if path in self.pairs and not self._inline(self.pairs[path]):
            return self._without_line(self.pairs[path])
        if path in self.values:
            return self._without_element(self.pairs.get(path, self.values[path]))
        within = [node for known, node in (self.tables | self.pairs).items() if known[: len(path)] == path]
        kept, at = b"", 0
        for start, end in sorted((self._line_start(node.start_byte), self._own_end(node)) for node in within):
            if start > at:
                kept += self.data[at:start]
            at = max(at, self._next_line(end))
        rest = self.data[at:]
        blank = kept.endswith(self.newline * 2) or not kept
        return kept + (rest.removeprefix(self.newline) if blank else rest)

    def _own_end(self, node: Any) -> int:
        """Where the last key of a table ends, the comments behind it left out; of a key, where its value does."""
        if node.type == "pair":
            return node.end_byte
        keys = [child for child in node.named_children if child.type == "pair"]
        return keys[-1].end_byte if keys else node.start_byte

    def _into_table(self, node: Any, rest: KeyPath, raw: str) -> bytes:
        line = _line(rest, raw)
        if sketch := self._sketched(node, rest):
            comment = sketch["comment"] or b""
            column = len(sketch[0].removesuffix(comment).decode())
            apart = b" " * max(2, column - len(line.decode())) if comment else b""
            return self._cut(sketch.start(), sketch.end(), line + apart + comment)
        keys = [child for child in node.named_children if child.type == "pair"]
        indent = self.data[self._line_start(keys[-1].start_byte) : keys[-1].start_byte] if keys else b""
        end = self._line_end(self._own_end(node))
        return self._cut(end, end, self.newline + indent + line)

    def _sketched(self, node: Any, rest: KeyPath) -> re.Match[bytes] | None:
        """The line `# key = "…"  # what it is` of a table, where one is: a key that is only waiting to be set."""
        text = self.data[: node.end_byte]
        end = text.find(b"\n# [", node.start_byte)  # a table that is waiting, too: what follows is of that
        sketch = re.compile(
            rb"^# ?%b = [^\r\n]*?(?:  +(?P<comment>#[^\r\n]*))?(?=\r?$)" % re.escape(dotted(rest)).encode(), re.M
        )
        return sketch.search(text, node.start_byte, len(text) if end < 0 else end)

    def _at_the_top(self, path: KeyPath, raw: str) -> bytes:
        """A key of no table stands before the first header: behind such keys, or below the comment that opens the file."""
        line = _line(path, raw)
        if own := [node for known, node in self.pairs.items() if len(known) == 1]:
            end = self._line_end(own[-1].end_byte)
            return self._cut(end, end, self.newline + line)
        if not self.tables:
            return self.data + line + self.newline
        start = self._above(min(node.start_byte for node in self.tables.values()))
        return self._cut(start, start, line + self.newline * 2)

    def _above(self, header: int) -> int:
        """Where the comment on a header begins, if one stands right above it; not the one that opens the file."""
        start = header
        while start and (line := self.data[self._line_start(start - 1) : start]).lstrip().startswith(b"#"):
            start -= len(line)
        return start or header

    def _new_table(self, path: KeyPath, raw: str) -> bytes:
        """A table of its own at the end; the next element of a list of tables after the last one."""
        *above, key = path
        header = ".".join(key_written(part) for part in above if isinstance(part, str))
        new = above[-1] if isinstance(above[-1], int) else None
        lines = [f"[[{header}]]" if new is not None else f"[{header}]", f"{key_written(str(key))} = {raw}"]
        text = self.newline.join(line.encode() for line in lines)
        if new:
            before = (*above[:-1], int(new) - 1)
            end = max(self._own_end(node) for known, node in self.tables.items() if known[: len(before)] == before)
            end = self._line_end(end)
            return self._cut(end, end, self.newline * 2 + text)
        if not self.data.strip():
            return self.data + text + self.newline
        if below := [node.start_byte for known, node in self.tables.items() if known[: len(above)] == tuple(above)]:
            start = self._above(min(below))  # [dataset] goes before [[dataset.subset]]
            return self._cut(start, start, text + self.newline * 2)
        body = self.data.rstrip()
        tail = self.newline if self.data.endswith(b"\n") else b""
        return body + self.newline * 2 + text + tail

    def _into_inline(self, node: Any, rest: KeyPath, raw: str) -> bytes:
        line, keys = _line(rest, raw), [child for child in node.named_children if child.type == "pair"]
        if keys:
            end = keys[-1].named_children[1].end_byte
            return self._cut(end, end, b", " + line)
        return self._cut(node.start_byte, node.end_byte, b"{ " + line + b" }")

    def _without_line(self, node: Any) -> bytes:
        start, end = self._line_start(node.start_byte), self._next_line(node.end_byte)
        if end == len(self.data) and not self.data.endswith(b"\n"):  # the file ends as it did: without a line end
            return self.data[:start].removesuffix(b"\n").removesuffix(b"\r")
        return self.data[:start] + self.data[end:]

    def _without_element(self, node: Any) -> bytes:
        """A key of an inline table or an element of a list, with the comma behind it, or the one before the last."""
        start, end = node.start_byte, (node.named_children[1] if node.type == "pair" else node).end_byte
        if behind := re.compile(rb"\s*,[ \t]*").match(self.data, end):
            return self._cut(start, behind.end(), b"")
        before = re.search(rb",?\s*$", self.data[:start])
        if before and b"," in before[0]:
            return self._cut(before.start(), end, b"")
        return self._cut(start, end, b"")

    def _inline(self, node: Any) -> bool:
        return node.parent is not None and node.parent.type == "inline_table"

    def _line_start(self, at: int) -> int:
        return self.data.rfind(b"\n", 0, at) + 1

    def _line_end(self, at: int) -> int:
        """Where the line ends, before its line end."""
        found = self.data.find(b"\n", at)
        if found < 0:
            return len(self.data)
        return found - 1 if self.data[found - 1 : found] == b"\r" else found

    def _next_line(self, at: int) -> int:
        found = self.data.find(b"\n", at)
        return len(self.data) if found < 0 else found + 1

    def _cut(self, start: int, end: int, new: bytes) -> bytes:
        return self.data[:start] + new + self.data[end:]


def _is_at_the_top(node: Any) -> bool:
    return node.parent is not None and node.parent.type == "document"


def _line(path: KeyPath, raw: str) -> bytes:
    return f"{'.'.join(key_written(str(part)) for part in path)} = {raw}".encode()
