"""Which way TensorRT's ONNX parser took for each node, read from its log.

The parser decides by itself whether a node with a function and a plugin becomes the one or the
other, and the rule differs per release. It never reports the decision but in its log. The sentences
below were seen in TensorRT-RTX 1.7 or stand in the published parser source of the release named.

======================================================  ==========  ==========================
sentence (shortened)                                    way         release
======================================================  ==========  ==========================
Found registered local function: OP. Importing as a     function    10.0 and later, RTX 1.7
local function. (older ones misspell `regisitered`)
Found registered plugin: OP. Importing this node as a   plugin      10.15 and later, RTX 1.7
plugin.
Found registered plugin: OP. Importing local function   plugin      10.7 to 10.14
as a plugin.
No importer registered for op: OP. Attempting to        plugin, if  every one, for a node
import as plugin.                                       it is found without a function
======================================================  ==========  ==========================
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from visionllm_edge.runtime.engines.plan import NodeForm

__all__ = ["Decision", "ParserLog", "disagreements"]

_NODE = re.compile(r"^Parsing node: (?P<node>.*) \[(?P<op>[^\]]+)\]\s*$")
# Newer parsers look at every node twice; what they say at the first look is repeated at the second.
_FIRST_LOOK = re.compile(r"^Static check for parsing node: ")
_WAYS = (
    (
        re.compile(r"Found regis\w+ local function: (\S+)\. Importing as a local function"),
        "function",
    ),
    (
        re.compile(
            r"Found registered plugin: (\S+)\. Importing (?:this node|local function) as a plugin"
        ),
        "plugin",
    ),
    (
        re.compile(r"No importer registered for op: (\S+)\. Attempting to import as plugin"),
        "plugin",
    ),
)
_MISSING = re.compile(r"[Pp]lugin not found|could not find plugin", re.ASCII)


@dataclass(frozen=True)
class Decision:
    """The parser's way for one node: `plugin` or `function`."""

    node: str
    op: str
    way: str


class ParserLog:
    """Takes log lines one by one and keeps the decisions."""

    def __init__(self, lines: Iterable[str] = ()) -> None:
        """Read the lines that are there already."""
        self.decisions: list[Decision] = []
        self.plugin_missing = False
        self._current: tuple[str, str] | None = None
        for line in lines:
            self.feed(line)

    def feed(self, line: str) -> bool:
        """Read one line without severity or time; says whether it told something."""
        if _MISSING.search(line):
            self.plugin_missing = True
            return True
        if _FIRST_LOOK.match(line):
            self._current = None
            return False
        started = _NODE.match(line)
        if started:
            self._current = (started["node"], started["op"])
            return False
        if self._current is None:
            return False
        node, op = self._current
        for pattern, way in _WAYS:
            found = pattern.search(line)
            # Inside a function body other nodes follow; a sentence about another op is theirs.
            if found and found[1] == op:
                self.decisions.append(Decision(node, op, way))
                self._current = None
                return True
        return False


def disagreements(forms: Sequence[NodeForm], decisions: Sequence[Decision]) -> list[str]:
    """Where the parser did something else than lowering decided; one sentence per node.

    A node whose form is `plugin` must have become a plugin. A node of another form must not have: a
    function may also have been inlined before, and then the parser never sees the node.
    """
    ways = {(decision.node, decision.op): decision.way for decision in decisions}
    wrong = []
    for form in forms:
        way = ways.get((form.node, form.op))
        if form.form == "plugin" and way != "plugin":
            became = "a function" if way == "function" else "standard operators, or nothing"
            wrong.append(f"node '{form.node}' ({form.op}) expected the plugin, became {became}")
        elif form.form != "plugin" and way == "plugin":
            wrong.append(
                f"node '{form.node}' ({form.op}) expected form '{form.form}', became a plugin"
            )
    return wrong
