"""Find the line of a key in a TOML file; needed only to tell a user where a mistake is."""

from __future__ import annotations

import tomllib
from typing import Any

from lorabuild.manifest.layers import KeyPath


class Lines:
    """The line, from 1, of every table, key and element of an array in a TOML file."""

    def __init__(self, data: bytes):
        from tree_sitter import Language, Parser
        from tree_sitter_toml import language

        self._line: dict[KeyPath, int] = {(): 1}
        self._elements: dict[KeyPath, int] = {}  # array of tables -> index of its last table
        for node in Parser(Language(language())).parse(data).root_node.children:
            self._add(node)

    def of(self, path: KeyPath) -> int:
        """The line of `path`, or of the nearest table around it that the file has."""
        return next(self._line[path[:length]] for length in range(len(path), -1, -1) if path[:length] in self._line)

    def _add(self, node: Any) -> None:
        if not node.named_children:
            return
        if node.type == "pair":
            self._add_pair(node, ())
        elif node.type in ("table", "table_array_element") and (keys := keys_of(node.named_children[0])):
            table = self._header(keys, node)
            for child in node.named_children[1:]:
                if child.type == "pair":
                    self._add_pair(child, table)

    def _header(self, keys: KeyPath, node: Any) -> KeyPath:
        """The path of the table that a header opens: of arrays of tables on the way, the last table is meant."""
        path: KeyPath = ()
        for key in keys[:-1]:
            path = (*path, key)
            self._note(path, node)
            if path in self._elements:
                path = (*path, self._elements[path])
        path = (*path, keys[-1])
        self._note(path, node)
        if node.type == "table_array_element":
            self._elements[path] = self._elements.get(path, -1) + 1
            path = (*path, self._elements[path])
            self._note(path, node)
        return path

    def _add_pair(self, node: Any, table: KeyPath) -> None:
        path = table
        for key in keys_of(node.named_children[0]):
            path = (*path, key)
            self._note(path, node)
        self._add_value(node.named_children[1], path)  # behind the value may be a comment

    def _add_value(self, node: Any, path: KeyPath) -> None:
        if node.type == "inline_table":
            for child in node.named_children:
                if child.type == "pair":
                    self._add_pair(child, path)
        elif node.type == "array":
            for number, child in enumerate(child for child in node.named_children if child.type != "comment"):
                self._note((*path, number), child)
                self._add_value(child, (*path, number))

    def _note(self, path: KeyPath, node: Any) -> None:
        self._line.setdefault(path, node.start_point.row + 1)


def keys_of(node: Any) -> KeyPath:
    """The parts of a dotted key. TOML's own reader undoes quotes and escapes; what it cannot read is no key."""
    try:
        table: Any = tomllib.loads(f"{node.text.decode()} = 0")
    except ValueError:
        return ()
    keys = []
    while isinstance(table, dict) and table:
        key, table = next(iter(table.items()))
        keys.append(key)
    return tuple(keys)
