# SPDX-License-Identifier: Apache-2.0
"""The page's script, run over a made-up page whose canvas tells what is drawn on it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings

from perfguest.profile import Mapping, Mode, Profile, Vm
from tests import profiles
from tests.profiles import Frame, ProfileBuilder
from tests.writers.flamegraph_pages import HEIGHT, ROW, WIDTH, Browser, Drawn, page_of


def is_found(frame: Drawn) -> bool:
    """Of the made-up style's colours that of what was found has by far the highest hue."""
    return float(frame.fill.removeprefix("hsl(").partition(",")[0]) > 200


def user(name: str) -> Frame:
    return Frame(name, Mode.HOST_USER, Mapping("/bin/x"))


def opened(profile: Profile) -> Browser:
    browser = Browser(page_of(profile))
    assert not browser.error
    return browser


def of_stacks(*stacks: str, **sample: int) -> ProfileBuilder:
    """A sample for each, of one letter for each frame, root first, on a thread "t"."""
    builder = ProfileBuilder()
    for stack in stacks:
        builder.sample([user(name) for name in reversed(stack)], comm="t", **sample)
    return builder


@pytest.fixture
def example() -> Browser:
    return opened(profiles.example())


def test_widths_are_samples_and_callers_stand_below(example: Browser) -> None:
    frames = {frame.name: frame for frame in example.frames()}
    places = {name: (round(frame.x), round(frame.x + frame.width) // 10 * 10) for name, frame in frames.items()}
    assert places["all"] == (0, 990) and places["kworker/u8:1"] == (0, 190) and places["web"] == (200, 990)
    assert places["CPU 0/KVM"] == (200, 590) and places["CPU 1/KVM"] == (600, 990)
    rows = [round((HEIGHT - frames[name].y) / ROW) for name in ("all", "web", "CPU 0/KVM", "main", "sha_round")]
    assert rows == [1, 2, 3, 4, 5]


def test_kinds_have_their_colours(example: Browser) -> None:
    """The made-up style's hue is the length of a colour's name."""
    hues = {frame.name: frame.fill.removeprefix("hsl(").split(",")[0] for frame in example.frames()}
    for name, colour in [("web", "--vm"), ("sha_round", "--guest-user"), ("ksys_read", "--guest-kernel"), ("vcpu_run", "--host-kernel")]:
        assert abs(int(hues[name]) - len(colour)) <= 4
    assert "guest kernel" in example.text("legend") and "? only looks like a caller" not in example.text("legend")


def test_unproven_frames_look_different() -> None:
    browser = opened(ProfileBuilder().sample([Frame("? f", Mode.GUEST_KERNEL, profiles.GUEST_KERNEL), user("g")], comm="t").build())
    assert "? only looks like a caller" in browser.text("legend")
    browser.frames()
    assert browser.frame("? f").alpha < browser.frame("g").alpha == 1
    browser.click("? f")
    assert "only looks like a caller" in browser.text("facts")


def test_header_says_what_it_is(example: Browser) -> None:
    assert example.text("title") == "KVM guests on host"
    assert example.text("about") == "10 samples of cpu-clock \u00b7 over 10.25 ms \u00b7 2023-11-14 22:13:20 UTC"
    assert example.get("document.title") == "KVM guests on host \u2013 flame graph"
    assert "9 of 9 guest samples paired" in example.text("notes")


@pytest.mark.parametrize("started", [None, 1e300, -1e300])
def test_header_without_a_time(started: float | None) -> None:
    assert opened(replace(profiles.example(), wall_start=started)).text("about").endswith("over 10.25 ms")


def test_click_zooms_and_escape_goes_back(example: Browser) -> None:
    example.click("CPU 1/KVM")
    frames = {frame.name: frame for frame in example.frames()}
    assert "kworker/u8:1" not in frames and not example.get("ids.reset.disabled")
    assert frames["CPU 1/KVM"].width == frames["web"].width == WIDTH - 1
    assert frames["web"].alpha < frames["CPU 1/KVM"].alpha
    example.click("web")
    assert {frame.name for frame in example.frames()} >= {"web", "CPU 0/KVM"} and example.frame("CPU 1/KVM").width == pytest.approx(WIDTH / 2 - 1)
    example.key("Escape")
    assert example.frame("kworker/u8:1").width == pytest.approx(WIDTH / 5 - 1) and example.get("ids.reset.disabled")
    example.click("CPU 1/KVM")
    example.fire("reset", "click")
    assert example.frame("kworker/u8:1").width == pytest.approx(WIDTH / 5 - 1)


def test_click_tells_of_the_frame_and_its_stack(example: Browser) -> None:
    example.click("sha_round")
    assert example.text("name") == "sha_round"
    assert example.text("facts") == "guest user \u00b7 /bin/app \u00b7 2 samples, 20.0% of all, 66.7% of its caller, 2 samples in itself"
    assert example.text("stack") == "web\nCPU 0/KVM\nmain (/bin/app)\nsha_round (/bin/app)"
    example.fire("copy", "click")
    assert example.get("clipboard.text") == example.text("stack") and example.text("copy") == "Copied"


def test_without_a_clipboard_the_stack_is_selected(example: Browser) -> None:
    example.click("sha_round")
    example.engine.eval("clipboard.isDenied = true")
    example.fire("copy", "click")
    assert example.get("document.selected") == "stack" and "Ctrl-C" in example.text("copy")


def test_hovering_tells_of_the_frame(example: Browser) -> None:
    assert example.get("ids.tip.hidden")
    example.point("main")
    assert example.get("ids.tip.children.map((part) => part.textContent)") == [
        "main",
        "guest user \u00b7 /bin/app \u00b7 3 samples, 30.0% of all, 75.0% of its caller",
    ]
    example.fire("canvas", "mousemove", offsetX=500, offsetY=3, clientX=500, clientY=3)
    assert example.get("ids.tip.hidden")
    # Nor does it cover what keys select.
    example.point("main")
    example.key("Home", on_graph=True)
    assert example.get("ids.tip.hidden")


def test_there_is_no_frame_above_what_a_frame_has_itself() -> None:
    browser = opened(of_stacks("ab", "a").build())
    browser.point("b")
    assert not browser.get("ids.tip.hidden")
    browser.fire("canvas", "mousemove", offsetX=WIDTH * 3 / 4, offsetY=browser.frame("b").y + 5, clientX=0, clientY=0)
    assert browser.get("ids.tip.hidden")


def test_search_tells_how_much_it_found(example: Browser) -> None:
    example.type("search", "^SHA_|read$")
    assert example.text("matched") == "60.0% found, 6 samples"
    found = [frame for frame in example.frames() if is_found(frame)]
    assert {frame.name for frame in found} == {"sha_round", "ksys_read"}
    assert {frame.alpha for frame in found} == {1} and example.frame("main").alpha < 1
    example.click("CPU 0/KVM")
    assert example.text("matched") == "75.0% found in the zoomed frame, 3 samples"
    example.type("search", "bin/app")
    assert {frame.name for frame in example.frames() if is_found(frame)} == {"main", "sha_round"}
    example.type("search", "")
    assert example.text("matched") == "" and example.frame("main").alpha == 1


def test_search_counts_a_stack_once() -> None:
    browser = opened(of_stacks("aba", "abaa", "c", "d").build())
    browser.type("search", "^a$")
    assert browser.text("matched") == "50.0% found, 2 samples"
    browser.click("a")
    assert browser.text("matched").startswith("100.0% found")


def test_a_search_that_is_no_expression_is_told(example: Browser) -> None:
    example.type("search", "sha")
    example.type("search", "sha(")
    assert example.get("ids.search.attributes")["aria-invalid"] == "true" and example.text("matched")
    example.type("search", "sha(_)")
    assert example.get("ids.search.attributes")["aria-invalid"] == "false" and example.text("matched") == "30.0% found, 3 samples"


def test_keys_lead_to_the_search_and_back(example: Browser) -> None:
    for key, ctrl in (("f", True), ("/", False)):
        example.engine.eval("document.activeElement = null")
        assert example.key(key, ctrl=ctrl) and example.get("document.activeElement === ids.search")
        # The second time it is the browser's own search, and a slash.
        assert not example.key(key, ctrl=ctrl)
    example.type("search", "sha")
    example.click("web")
    example.key("Escape")
    assert example.text("matched") == "" and example.get("ids.search.value") == "" and not example.get("ids.reset.disabled")
    example.key("Escape")
    assert example.get("ids.reset.disabled")


def test_keys_move_from_frame_to_frame(example: Browser) -> None:
    names = []
    for key in ("Home", "ArrowUp", "ArrowUp", "ArrowRight", "ArrowRight", "ArrowUp", "ArrowLeft", "ArrowUp", "ArrowDown", "Enter"):
        example.key(key, on_graph=True)
        names.append(example.text("name"))
    right = ["web", "CPU 0/KVM", "CPU 1/KVM", "CPU 1/KVM"]
    assert names == ["all", *right, "main", "kvm_vcpu_ioctl", "do_syscall_64", "kvm_vcpu_ioctl", "kvm_vcpu_ioctl"]
    assert example.frame("kvm_vcpu_ioctl").width == WIDTH - 1
    # What is not on the zoomed frame zooms out as far as it takes.
    example.key("ArrowRight", on_graph=True)
    assert example.text("name") == "main" and example.frame("CPU 1/KVM").width == WIDTH - 1 and example.frame("main").width < WIDTH - 1


def test_icicles_hang_from_their_root(example: Browser) -> None:
    example.fire("turn", "click")
    assert [example.frame(name).y for name in ("all", "web", "CPU 0/KVM")] == [0, ROW, 2 * ROW]
    assert example.get("ids.turn.attributes")["aria-pressed"] == "true"
    example.click("main")
    example.key("ArrowUp", on_graph=True)
    assert example.text("name") == "CPU 0/KVM"


def test_high_graphs_scroll() -> None:
    letters = [chr(ord("\u0400") + number) for number in range(100)]
    browser = opened(of_stacks("".join(letters)).build())
    assert browser.frame("all").y == HEIGHT - ROW
    assert len(browser.frames()) <= HEIGHT / ROW + 2
    browser.engine.eval("ids.graph.scrollTop = 0")
    browser.fire("graph", "scroll")
    top = min(browser.frames(), key=lambda frame: frame.y)
    browser.fire("canvas", "click", offsetX=5, offsetY=top.y + 5)
    assert browser.text("name") == letters[-1]
    browser.key("Home", on_graph=True)
    assert browser.frame("all").y == HEIGHT - ROW
    # Roots stay where they are when the window changes, and so does what was scrolled to.
    for height in (300, 900):
        browser.engine.eval(f"ids.graph.clientHeight = {height}; observers.forEach((told) => told())")
        assert browser.frame("all").y == height - ROW
    browser.engine.eval("ids.graph.scrollTop -= 2 * 18")
    browser.fire("graph", "scroll")
    bottom = max(browser.frames(), key=lambda frame: frame.y)
    browser.engine.eval("ids.graph.clientHeight = 600; observers.forEach((told) => told())")
    assert max(browser.frames(), key=lambda frame: frame.y).name == bottom.name == letters[0]


def test_measures_are_samples_and_periods_of_each_event() -> None:
    builder = ProfileBuilder(events=["cpu-clock:GH", "cache-misses"])
    builder.sample([user("f")], comm="t", period=3_000_000).sample([user("g")], comm="t", period=1_000_000)
    builder.sample([user("g")], comm="t", event=1, period=1234)
    browser = opened(builder.build())
    assert browser.get("ids.measure.children.map((option) => option.textContent)") == [
        "samples of cpu-clock:GH",
        "CPU time by cpu-clock:GH",
        "samples of cache-misses",
        "cache-misses, estimated",
    ]
    assert browser.frame("f").width == WIDTH / 2 - 1
    browser.click("f")
    browser.type("measure", "1", "change")
    assert "3 ms, 75.0% of all" in browser.text("facts")
    browser.key("Escape")
    assert browser.frame("f").width == WIDTH * 3 / 4 - 1
    # What is zoomed and selected has nothing of this event.
    browser.click("f")
    browser.type("measure", "3", "change")
    assert {frame.name for frame in browser.frames()} == {"all", "t", "g"} and browser.text("name") == ""
    browser.click("g")
    assert "1,234 cache-misses, 100.0% of all" in browser.text("facts")


def test_no_samples_are_told() -> None:
    browser = opened(ProfileBuilder().build())
    assert browser.text("about").startswith("No samples") and browser.text("facts") == "This recording has no samples."
    assert browser.frames() == []
    for key in ("Home", "ArrowUp", "Enter", "Escape"):
        browser.key(key, on_graph=True)
    browser.fire("canvas", "click", offsetX=5, offsetY=HEIGHT - 5)
    browser.type("search", "x")
    assert browser.text("name") == browser.text("matched") == ""


def test_narrow_frames_are_drawn_as_one() -> None:
    """A hundred thousand stacks, as many frames on the same caller: what is drawn is bounded by the width."""
    profile = profiles.big(samples=150_000, stacks=100_000, depth=6)
    browser = opened(profile)
    assert browser.get("ids.data.textContent.length") > 500_000 and browser.get("decode(JSON.parse(ids.data.textContent).children).length") > 300_000
    frames = browser.frames()
    assert len(frames) < 100
    rows = sorted({frame.y for frame in frames}, reverse=True)
    assert len(rows) == 4
    # The runs fill their rows: nothing has gone.
    top = [frame for frame in frames if frame.y == rows[3]]
    assert sum(frame.width for frame in top) == pytest.approx(WIDTH, abs=8)
    # On what is drawn as one nothing stands that could be pointed at.
    for row, is_hidden in ((4, False), (5, True)):
        browser.fire("canvas", "mousemove", offsetX=500.5, offsetY=HEIGHT - row * ROW + 5, clientX=0, clientY=0)
        assert browser.get("ids.tip.hidden") == is_hidden
    browser.point("CPU 3/KVM")
    assert f"{np.count_nonzero(profile.samples.vcpu == 3):,} samples" in browser.text("tip")


def test_narrow_frames_are_drawn_on_both_sides_of_a_wide_one() -> None:
    builder = ProfileBuilder()
    for number in range(20):
        builder.sample([user(f"a{number}")], comm="t", period=10).sample([user(f"z{number}")], comm="t", period=10)
    browser = opened(builder.sample([user("middle")], comm="t", period=10_000).build())
    browser.type("measure", "1", "change")
    middle = browser.frame("middle")
    left, right = sorted((frame.x, frame.width) for frame in browser.frames() if frame.y == middle.y and frame.name != "middle")
    width = WIDTH * 200 / 10_400
    assert left == pytest.approx((0, width)) and right == pytest.approx((WIDTH - width, width))


def test_names_are_shortened_to_their_frames() -> None:
    browser = opened(of_stacks("a").sample([user("long_" * 30)], comm="t").build())
    (frame,) = (frame for frame in browser.frames() if frame.name.startswith("long_"))
    assert frame.name.endswith("\u2026") and len(frame.name) * 7 <= frame.width


def test_hostile_names_are_text() -> None:
    names = ["<img src=x onerror=alert(1)>", "\u202eevil", "</script>", "__proto__", "e" + "\u0301" * 8]
    builder = ProfileBuilder(notes=names)
    for name in names:
        builder.sample([Frame(name, Mode.GUEST_USER, Mapping(name)), *profiles.label_frames(name, name)], comm=name, vm=Vm(1, name))
    browser = opened(replace(builder.build(), hostname=names[0]))
    drawn = {frame.name for frame in browser.frames()}
    assert {"<img src=x onerror=alert(1\u2026", r"\xe2\x80\xaeevil", "</script>", "__proto__"} <= drawn
    # Marks that pile up stay within their frame.
    assert any(call["what"] == "clip" for call in _calls(browser))
    browser.click("__proto__")
    for _ in range(2):
        browser.key("ArrowUp", on_graph=True)
    assert browser.text("name") == "__proto__" and browser.text("stack") == "__proto__\n__proto__\n__proto__ (__proto__)"
    assert browser.text("title") == f"KVM guests on {names[0]}" and r"\xe2\x80\xaeevil" in browser.text("notes")


def _calls(browser: Browser) -> list[dict[str, object]]:
    browser.engine.eval("scheme.fire('change')")
    return browser.picture()


def test_what_fails_is_told() -> None:
    page = page_of(profiles.example())
    browser = Browser(replace(page, raw=page.raw.replace(b'"children":["u1"', b'"children":["u3"')))
    assert browser.error and browser.text("facts").startswith("The flame graph cannot be drawn: ")


@settings(deadline=None, max_examples=40)
@given(profiles.profiles())
def test_the_tree_is_the_writers(profile: Profile) -> None:
    page = page_of(profile)
    browser = Browser(page)
    browser.engine.eval("const tree = new Tree(JSON.parse(ids.data.textContent))")
    for event in range(len(page.data["events"])):
        browser.engine.eval(_measure(event))
        paths = browser.get("Array.from(tree.total, (_, node) => tree.pathTo(node).slice(1).map((one) => tree.nameOf(one)))")
        stacks = page.stacks(event)
        expected = [sum(count for stack, count in stacks.items() if list(stack[: len(path)]) == path) for path in paths]
        totals: list[float] = browser.get("Array.from(tree.total)")
        # Frames of equal names and other modules are other nodes: those of a path add up.
        by_path: dict[tuple[str, ...], float] = {}
        for path, total in zip(paths, totals, strict=True):
            by_path[tuple(path)] = by_path.get(tuple(path), 0) + total
        assert [by_path[tuple(path)] for path in paths] == expected
        _check_places(browser)


def _measure(event: int) -> str:
    return f"{{ const event = JSON.parse(ids.data.textContent).events[{event}]; tree.measure(decode(event.skip), decode(event.samples)); }}"


def _check_places(browser: Browser) -> None:
    """Children lie side by side on their caller."""
    start, total, parent = (np.array(browser.get(f"Array.from(tree.{column})")) for column in ("start", "total", "parent"))
    for node in range(1, len(start)):
        before = (parent[:node] == parent[node]) & (np.arange(node) > 0)
        assert start[node] == start[parent[node]] + total[:node][before].sum()
        assert start[node] + total[node] <= start[parent[node]] + total[parent[node]]
    assert isinstance(browser.frames(), list) and all(isinstance(frame, Drawn) for frame in browser.frames())
