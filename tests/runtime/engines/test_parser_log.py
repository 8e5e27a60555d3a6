"""Real log lines of TensorRT-RTX 1.7.1, and the sentences of older parsers."""

from __future__ import annotations

import pytest

from visionllm_edge.runtime.engines.parser_log import Decision, ParserLog, disagreements
from visionllm_edge.runtime.engines.plan import NodeForm

# As printed by TensorRT-RTX 1.7.1.116 for a graph Relu -> ProbeTwice -> Neg, severities left out.
AS_PLUGIN = """\
Adding network input: x with dtype: float32, dimensions: (-1, 4)
Static check for parsing node: relu [Relu]
Parsing node: relu [Relu]
Searching for input: x
relu [Relu] inputs: [x -> (-1, 4)[FLOAT]],
Registering layer: relu for ONNX node: relu
Checking if node can be treated as plugin: ProbeTwice, plugin_version: 1, plugin_namespace: visionllm
Static check for parsing node: node_probe [ProbeTwice]
Found registered plugin: ProbeTwice. Importing this node as a plugin.
Parsing node: node_probe [ProbeTwice]
Searching for input: r
node_probe [ProbeTwice] inputs: [r -> (-1, 4)[FLOAT]],
Found registered plugin: ProbeTwice. Importing this node as a plugin.
Searching for plugin: ProbeTwice, plugin_version: 1, plugin_namespace: visionllm
Successfully created plugin: ProbeTwice
Registering layer: node_probe for ONNX node: node_probe
Static check for parsing node: neg [Neg]
Parsing node: neg [Neg]
"""  # noqa: E501
AS_FUNCTION = """\
Static check for parsing node: node_probe [ProbeTwice]
Found registered local function: ProbeTwice. Importing as a local function.
Static check for parsing node: inner [Add]
Parsing node: node_probe [ProbeTwice]
Searching for input: r
Found registered local function: ProbeTwice. Importing as a local function.
Function stack: [node_probe (ProbeTwice)]
Parsing node: inner [Add]
Searching for input: a
Registering layer: inner for ONNX node: inner
"""
NOT_FOUND = """\
Static check for parsing node: node_probe [ProbeTwice]
No checker registered for op: ProbeTwice. Attempting to check as plugin.
Plugin not found with node attribute namespace: using pluginName: ProbeTwice, pluginVersion: 1
ModelImporter.cpp:140: While parsing node number 1 [ProbeTwice -> "t"]:
[6] creator && "Plugin not found, are the plugin name, version, and namespace correct?"
"""


def ways(text: str) -> list[tuple[str, str]]:
    return [(d.node, d.way) for d in ParserLog(text.splitlines()).decisions]


def test_a_plugin_of_rtx_is_seen_once() -> None:
    assert ways(AS_PLUGIN) == [("node_probe", "plugin")]


def test_a_function_of_rtx_is_seen_and_its_inner_nodes_are_not() -> None:
    assert ways(AS_FUNCTION) == [("node_probe", "function")]


def test_a_missing_plugin_is_no_decision() -> None:
    log = ParserLog(NOT_FOUND.splitlines())
    assert log.decisions == [] and log.plugin_missing


@pytest.mark.parametrize(
    ("sentence", "way"),
    [
        ("Found regisitered local function: Op. Importing as a local function.", "function"),
        ("Found registered plugin: Op. Importing local function as a plugin.", "plugin"),
        ("No importer registered for op: Op. Attempting to import as plugin.", "plugin"),
    ],
)
def test_sentences_of_older_parsers(sentence: str, way: str) -> None:
    assert ways(f"Parsing node: a node [Op]\n{sentence}") == [("a node", way)]


def test_a_sentence_about_another_operator_is_not_the_node_s() -> None:
    text = "Parsing node: a [Op]\nFound registered plugin: Other. Importing this node as a plugin."
    assert ways(text) == []


def test_the_first_look_does_not_count_for_the_node_before() -> None:
    text = (
        "Parsing node: a [Op]\nStatic check for parsing node: b [Op]\n"
        "Found registered plugin: Op. Importing this node as a plugin."
    )
    assert ways(text) == []


def make(form: str) -> NodeForm:
    return NodeForm("n", "Op", form, "why")


@pytest.mark.parametrize(
    ("form", "decision", "words"),
    [
        ("plugin", "plugin", None),
        ("plugin", "function", "expected the plugin, became a function"),
        ("plugin", None, "expected the plugin, became standard operators, or nothing"),
        ("function", "function", None),
        ("gather", None, None),
        ("function", "plugin", "expected form 'function', became a plugin"),
    ],
)
def test_disagreements(form: str, decision: str | None, words: str | None) -> None:
    decisions = [Decision("n", "Op", decision)] if decision else []
    found = disagreements([make(form)], decisions)
    assert found == ([] if words is None else [f"node 'n' (Op) {words}"])


def test_another_node_of_the_same_operator_does_not_help() -> None:
    assert len(disagreements([make("plugin")], [Decision("other", "Op", "plugin")])) == 1
