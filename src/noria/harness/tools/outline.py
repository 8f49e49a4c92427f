"""A page as a model reads it: Chromium's accessibility tree as lines of text, with a ref for what can be acted on.

    page: Order http://site.test/order.html
    heading: Your order
    e1 textbox: Name = Ann (required)
    e2 checkbox: Gift (checked)
    e3 combobox: Size = small (small | large)
    e4 button: Send

Every line begins with a ref or a role and holds no line break, so a page's own text can't pass for a control.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

ACTIONABLE = frozenset(
    "link button textbox searchbox checkbox radio combobox listbox spinbutton slider switch tab menuitem "
    "menuitemcheckbox menuitemradio Date DateTime InputTime ColorWell DisclosureTriangle".split()
)
# Their value says what is inside.
WHOLE = frozenset("combobox listbox textbox searchbox spinbutton Date DateTime InputTime ColorWell".split())
NAMED = frozenset(("heading", "image", "img", "alert", "dialog", "figure"))
# One of these begins a new line of text; what stands between is inline.
BLOCKS = frozenset(("paragraph", "listitem", "cell", "gridcell", "columnheader", "rowheader", "blockquote", "term"))
STATES = ("checked", "selected", "required", "disabled", "readonly", "expanded", "pressed")

Node = Mapping[str, Any]


def outline(nodes: Sequence[Node], number: Callable[[int], int]) -> list[str]:
    """One line a heading, text or control, in document order.

    `nodes` is the answer of CDP's Accessibility.getFullAXTree; `number(backend node id)` gives the number of its ref.
    """
    by_id = {node["nodeId"]: node for node in nodes}
    controls = {_name(node) for node in nodes if _role(node) in ACTIONABLE}
    lines: list[str] = []
    block: Any = None  # the block that the last line of text belongs to
    for node, inside in _walk(nodes[0], by_id, ()) if nodes else ():
        role, name = _role(node), _name(node)
        if role in ACTIONABLE:
            lines.append(f"e{number(node['backendDOMNodeId'])} {_control(node, by_id)}")
            block = None
        elif role in NAMED and name:
            lines.append(f"{role}: {name}")
            block = None
        elif role == "row" and (cells := _cells(node, by_id)):
            lines.append("row: " + " | ".join(cells))
            block = None
        elif role == "StaticText" and name and not ("LabelText" in inside and name in controls):
            here = inside[-1] if inside else ""
            if block is not None and block == here:
                lines[-1] += " " + name
            else:
                lines.append(f"text: {name}")
            block = here
    return lines


def _walk(node: Node, by_id: Mapping[str, Node], inside: tuple[str, ...]) -> Iterator[tuple[Node, tuple[str, ...]]]:
    """Nodes in document order with the roles (blocks with their id) that they lie in. Iterative: pages nest deeply."""
    waiting = [(node, inside)]
    while waiting:
        node, inside = waiting.pop()
        role = _role(node)
        yield node, inside
        if role in WHOLE or role == "StaticText":
            continue
        if role == "row" and _cells(node, by_id):
            continue
        if role in ACTIONABLE or role in NAMED:
            inside = (*inside, "named")
        elif role == "LabelText":
            inside = (*inside, role)
        elif role in BLOCKS:
            inside = (*inside, f"{role} {node['nodeId']}")
        children = [by_id[child] for child in reversed(node.get("childIds", ())) if child in by_id]
        if inside and "named" in inside:  # its name is its text; only controls inside it are told
            children = [child for child in children if _role(child) != "StaticText"]
        waiting += [(child, inside) for child in children]


def _control(node: Node, by_id: Mapping[str, Node]) -> str:
    role, name = _role(node), _name(node)
    properties = {p["name"]: p["value"].get("value") for p in node.get("properties", ())}
    states = [state for state in STATES if properties.get(state) in (True, "true", "mixed")]
    text = f"{role}: {name}" if name else f"{role}:"
    value = _one_line(str(node.get("value", {}).get("value", "")))
    if role in ("combobox", "listbox"):
        options = [child for child, _ in _walk_all(node, by_id) if _role(child) == "option"]
        chosen = [_name(option) for option in options if _property(option, "selected") is True]
        value = value or ", ".join(chosen)
        states += [" | ".join(_name(option) for option in options)] if options else []
    if role in WHOLE or (value and role != "link"):
        text += f" = {value}"
    return text.rstrip() + (f" ({', '.join(states)})" if states else "")


def _walk_all(node: Node, by_id: Mapping[str, Node]) -> Iterator[tuple[Node, int]]:
    waiting = [(node, 0)]
    while waiting:
        at, depth = waiting.pop()
        yield at, depth
        waiting += [(by_id[child], depth + 1) for child in reversed(at.get("childIds", ())) if child in by_id]


def _cells(row: Node, by_id: Mapping[str, Node]) -> list[str]:
    """The texts of a row's cells; none where something in it can be acted on."""
    found = []
    for node, _ in _walk_all(row, by_id):
        if _role(node) in ACTIONABLE:
            return []
        if _role(node) in ("cell", "gridcell", "columnheader", "rowheader"):
            found.append(_name(node))
    return found


def _property(node: Node, name: str) -> Any:
    return next((p["value"].get("value") for p in node.get("properties", ()) if p["name"] == name), None)


def _role(node: Node) -> str:
    return "" if node.get("ignored") else str(node.get("role", {}).get("value", ""))


def _name(node: Node) -> str:
    return _one_line(str(node.get("name", {}).get("value", "") or ""))


def _one_line(text: str) -> str:
    return " ".join(text.split())
