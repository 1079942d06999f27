# SPDX-License-Identifier: Apache-2.0
"""What reads the flame graph's page in tests: a parser of its HTML, and a JavaScript engine that runs its script over a page made up for it."""

from __future__ import annotations

import base64
import io
import json
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import quickjs

from perfguest.profile import Profile
from perfguest.writers import flamegraph

FAKE_PAGE = (Path(__file__).parent / "fake_page.js").read_text()
WIDTH, HEIGHT, ROW = 1000, 600, 18
_VOID = {"meta", "input"}


def page_of(profile: Profile) -> Page:
    out = io.BytesIO()
    flamegraph.write(profile, out)
    return Page(out.getvalue())


@dataclass
class Node:
    tag: str
    attributes: dict[str, str]
    text: str = ""
    children: list[Node] = field(default_factory=list)

    def all(self, tag: str) -> list[Node]:
        return [self] * (self.tag == tag) + [one for child in self.children for one in child.all(tag)]

    def as_json(self) -> list[Any]:
        return [self.tag, self.attributes, self.text, [child.as_json() for child in self.children]]


class _Parser(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open = [Node("document", {})]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        node = Node(tag, {name: value or "" for name, value in attrs})
        self.open[-1].children.append(node)
        if tag not in _VOID:
            self.open.append(node)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        self.open[-1].text += data


@dataclass(frozen=True)
class Page:
    raw: bytes

    @cached_property
    def root(self) -> Node:
        parser = _Parser()
        parser.feed(self.raw.decode("ascii"))
        parser.close()
        (document,) = parser.open
        return document

    @property
    def block(self) -> Node:
        """The data block."""
        (node,) = (node for node in self.root.all("script") if node.attributes.get("id") == "data")
        return node

    @property
    def script(self) -> str:
        (node,) = (node for node in self.root.all("script") if not node.attributes)
        return node.text

    @cached_property
    def data(self) -> Any:
        return json.loads(self.block.text)

    def stacks(self, event: int, column: str = "samples") -> Counter[tuple[str, ...]]:
        """The weights of an event's stacks, by the names from the root on."""
        data, paths = self.data, self._paths()
        nodes = np.cumsum(decoded(data["events"][event]["skip"]).astype(np.int64))
        found: Counter[tuple[str, ...]] = Counter()
        for node, weight in zip(nodes.tolist(), decoded(data["events"][event][column]).tolist(), strict=True):
            found[paths[node]] += weight
        return found

    def _paths(self) -> list[tuple[str, ...]]:
        data = self.data
        names = [data["names"][number] for number in decoded(data["labelName"]).tolist()]
        paths: list[tuple[str, ...]] = [()]
        labels = iter(decoded(data["label"]).tolist())
        for node, children in enumerate(decoded(data["children"]).tolist()):
            paths += [(*paths[node], names[next(labels)]) for _ in range(children)]
        assert not list(labels)
        return paths


def decoded(column: list[str]) -> np.ndarray[Any, Any]:
    kind, text = column
    return np.frombuffer(base64.b64decode(text), f"<{kind}")


@dataclass(frozen=True)
class Drawn:
    """A frame on the canvas. ``name`` is empty where there is no room for it."""

    x: float
    y: float
    width: float
    fill: str
    alpha: float
    name: str


class Browser:
    """The page opened in a window over the graph of :data:`WIDTH` by :data:`HEIGHT`."""

    def __init__(self, page: Page) -> None:
        self.engine = quickjs.Context()
        self.engine.eval(FAKE_PAGE)
        (html,) = page.root.all("html")
        self.engine.eval(f"open({json.dumps(html.as_json())}, {WIDTH}, {HEIGHT})")
        self.error = ""
        try:
            self.engine.eval(page.script)
        except quickjs.JSException as error:
            self.error = str(error)

    def get(self, expression: str) -> Any:
        """What JavaScript says of the expression, by way of JSON."""
        text = self.engine.eval(f"JSON.stringify({expression})")
        return None if text is None else json.loads(text)

    def text(self, identifier: str) -> str:
        text: str = self.get(f"ids[{json.dumps(identifier)}].textContent")
        return text

    def picture(self) -> list[dict[str, Any]]:
        """All that is drawn now; empty if there was no reason to draw."""
        found: list[dict[str, Any]] = json.loads(self.engine.eval("picture()"))
        return found

    def frames(self) -> list[Drawn]:
        """What is seen, drawn anew."""
        self.engine.eval("scheme.fire('change')")
        calls = self.picture()
        names = {(round(call["rest"][1] - 4, 3), call["rest"][2] - ROW / 2): call["rest"][0] for call in calls if call["what"] == "text"}
        rects = [(*call["rest"], call["fill"], call["alpha"]) for call in calls[1:] if call["what"] == "rect"]
        return [Drawn(x, y, width, fill, alpha, names.get((round(x, 3), y), "")) for x, y, width, _, fill, alpha in rects]

    def frame(self, name: str) -> Drawn:
        """The leftmost of this name, and of these the one nearest to the root at the bottom."""
        return min((frame for frame in self.frames() if frame.name == name), key=lambda frame: (frame.x, -frame.y))

    def fire(self, identifier: str, kind: str, **event: Any) -> None:
        """The event, and then the promises that it began."""
        self.engine.eval(f"ids[{json.dumps(identifier)}].fire({json.dumps(kind)}, {_event(event)})")
        while self.engine.execute_pending_job():
            pass

    def click(self, name: str) -> None:
        self.fire("canvas", "click", **_middle(self.frame(name)))

    def point(self, name: str) -> None:
        self.fire("canvas", "mousemove", **_middle(self.frame(name)))

    def key(self, key: str, *, on_graph: bool = False, ctrl: bool = False) -> bool:
        """Whether the page keeps the key from the browser."""
        self.engine.eval("document.isPrevented = false")
        if on_graph:
            self.fire("canvas", "keydown", key=key, ctrlKey=ctrl)
        self.engine.eval(f"document.fire('keydown', {_event({'key': key, 'ctrlKey': ctrl})})")
        return bool(self.get("document.isPrevented"))

    def type(self, identifier: str, text: str, kind: str = "input") -> None:
        self.engine.eval(f"ids[{json.dumps(identifier)}].value = {json.dumps(text)}")
        self.fire(identifier, kind)


def _event(fields: dict[str, Any]) -> str:
    return f"Object.assign({json.dumps(fields)}, {{ preventDefault: () => (document.isPrevented = true) }})"


def _middle(frame: Drawn) -> dict[str, float]:
    x, y = frame.x + frame.width / 2, frame.y + ROW / 2
    return {"offsetX": x, "offsetY": y, "clientX": x, "clientY": y}
