"""A small builder for ONNX function bodies: collects nodes, prefixes every inner name.

The prefix is not decoration: TensorRT up to 10.7 binds an inner name of a function to an outer
tensor that happens to carry the same name. onnx is imported where it is used, so that a machine
without the exporter can import the operator list.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from visionllm_edge.plugins.semantic_op import DOMAIN, SemanticOp

if TYPE_CHECKING:
    import onnx

__all__ = ["FunctionBody", "require_opset"]


def require_opset(op: SemanticOp, opset: int, lowest: int, highest: int, hint: str = "") -> None:
    """Refuse an opset at which the body of an operator cannot be written.

    Args:
        op: the operator.
        opset: of the model.
        lowest: first opset that has what the body uses.
        highest: last one.
        hint: the next step, where there is one.

    Raises:
        ValueError: opset outside lowest..highest.
    """
    if not lowest <= opset <= highest:
        text = f"{op.name}: opset expected {lowest}..{highest}, got {opset}."
        raise ValueError(f"{text} {hint}".rstrip())


class FunctionBody:
    """The nodes of a function under construction.

    Args:
        prefix: written in front of every value the body defines.
    """

    def __init__(self, prefix: str) -> None:
        """Start an empty body."""
        self.prefix = prefix
        self.nodes: list[onnx.NodeProto] = []

    def add(self, op: str, inputs: list[str], name: str, **attributes: Any) -> str:
        """Append a node with one output called `name` (prefixed); returns that value's name."""
        from onnx import helper

        output = self.prefix + name
        self.nodes.append(helper.make_node(op, inputs, [output], **attributes))
        return output

    def add_pair(
        self, op: str, inputs: list[str], names: tuple[str, str], **attributes: Any
    ) -> tuple[str, str]:
        """Append a node with two outputs."""
        from onnx import helper

        outputs = self.prefix + names[0], self.prefix + names[1]
        self.nodes.append(helper.make_node(op, inputs, list(outputs), **attributes))
        return outputs

    def ints(self, name: str, values: list[int]) -> str:
        """Append an int64 vector constant."""
        return self.add("Constant", [], name, value_ints=values)

    def attribute(self, name: str, kind: str) -> str:
        """Append a scalar constant whose value is the calling node's attribute `name`.

        Args:
            name: attribute of the operator.
            kind: `int` or `float`.
        """
        from onnx import AttributeProto, helper

        attribute_type = {"int": AttributeProto.INT, "float": AttributeProto.FLOAT}[kind]
        node = helper.make_node("Constant", [], [f"{self.prefix}attr_{name}"])
        node.attribute.append(
            AttributeProto(name=f"value_{kind}", ref_attr_name=name, type=attribute_type)
        )
        self.nodes.append(node)
        return f"{self.prefix}attr_{name}"

    def inputs(self, op: SemanticOp) -> list[str]:
        """Names of the operator's inputs inside the body, in order."""
        return [self.prefix + port.name for port in op.inputs]

    def function(
        self, op: SemanticOp, outputs: list[str], *, opset: int, contrib: str | None = None
    ) -> onnx.FunctionProto:
        """The function of an operator with these nodes.

        Args:
            op: whose inputs and attributes it has.
            outputs: names inside the body, in order.
            opset: default-domain opset of the model.
            contrib: a further domain that the nodes use, at version 1.
        """
        from onnx import helper

        opsets = [helper.make_opsetid("", opset)]
        if contrib is not None:
            opsets.append(helper.make_opsetid(contrib, 1))
        return helper.make_function(
            DOMAIN,
            op.name,
            self.inputs(op),
            outputs,
            self.nodes,
            opsets,
            attributes=[name for name, _ in op.attributes],
        )
