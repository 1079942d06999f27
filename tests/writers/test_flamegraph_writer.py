# SPDX-License-Identifier: Apache-2.0
"""The page as a file: the folded writer's stacks, and no way out of the data block for names."""

from __future__ import annotations

import base64
import hashlib
import io
import re
import time
from collections import Counter
from dataclasses import fields, replace

import pytest
from hypothesis import given, settings

from perfguest.profile import Mapping, Mode, Profile, Samples, Vm
from perfguest.writers import flamegraph, folded
from tests import profiles
from tests.profiles import Frame, ProfileBuilder
from tests.writers.flamegraph_pages import Node, decoded, page_of

HOSTILE = [
    "</script><script>alert(1)</script>",
    "<!--<script>",
    "-->",
    "]]>",
    "\"'`",
    "&lt;b&gt;",
    "{{script}}",
    "\u202eevil\u2066",
    "nul\0",
    "\u2028\u2029",
    "\udcff\ud800",
    "\x1b[31m",
]


def _folded(profile: Profile, weight: folded.Weight) -> Counter[tuple[str, ...]]:
    out = io.BytesIO()
    folded.write(profile, out, weight)
    rows = (line.rpartition(" ") for line in out.getvalue().decode().splitlines())
    # What the format takes for separators is escaped there, and no backslash of a name looks like that.
    return Counter({tuple(name.replace(r"\x3b", ";").replace(r"\x20", " ") for name in path.split(";")): int(count) for path, _, count in rows})


def _of_event(profile: Profile, name: str) -> Profile:
    rows = profile.samples.event == profile.events.index(name)
    return replace(profile, samples=Samples(**{column.name: getattr(profile.samples, column.name)[rows] for column in fields(Samples)}))


def _skeleton(node: Node) -> object:
    """All of the page but the data."""
    text = "" if node.attributes.get("id") == "data" else node.text
    return node.tag, node.attributes, text, [_skeleton(child) for child in node.children]


def _all(node: Node) -> list[Node]:
    return [node, *(one for child in node.children for one in _all(child))]


def test_stacks_of_the_example() -> None:
    assert page_of(profiles.example()).stacks(0) == {
        ("kworker/u8:1", "do_syscall_64"): 2,
        ("web", "CPU 0/KVM", "kvm_vcpu_ioctl", "do_syscall_64", "vcpu_run"): 1,
        ("web", "CPU 0/KVM", "main", "0x7f0000001234", "do_syscall_64", "ksys_read"): 1,
        ("web", "CPU 0/KVM", "main", "sha_round"): 2,
        ("web", "CPU 1/KVM", "kvm_vcpu_ioctl", "do_syscall_64", "vcpu_run"): 1,
        ("web", "CPU 1/KVM", "main", "0x7f0000001234", "do_syscall_64", "ksys_read"): 2,
        ("web", "CPU 1/KVM", "main", "sha_round"): 1,
    }


def test_frames_have_their_kinds_and_modules() -> None:
    builder = ProfileBuilder().sample([Frame("? maybe", Mode.GUEST_KERNEL, profiles.GUEST_KERNEL), *profiles.label_frames("? vm", "t")], vm=Vm(1, "? vm"))
    builder.sample([Frame("nginx", Mode.NONE, Mapping("[guest-thread]")), *profiles.label_frames("? vm", "t")], vm=Vm(1, "? vm"))
    data = page_of(builder.sample([Frame("idle", Mode.HOST_KERNEL, profiles.HOST_KERNEL)], comm="swapper").build()).data
    columns = (decoded(data[name]).tolist() for name in ("labelName", "labelModule", "labelKind", "labelUnproven"))
    labels = {data["names"][name]: (data["modules"][module], data["kinds"][kind], unproven) for name, module, kind, unproven in zip(*columns, strict=True)}
    assert labels == {
        "? maybe": ("[guest.kernel.kallsyms]", "guest kernel", 1),
        "? vm": ("", "VM", 0),
        "t": ("", "thread", 0),
        "nginx": ("", "guest thread", 0),
        "idle": ("[kernel.kallsyms]", "host kernel", 0),
        "swapper": ("", "thread", 0),
    }


def test_a_frame_of_another_module_is_another_one() -> None:
    """Folded stacks have one for both; here each must say where it is."""
    builder = ProfileBuilder().sample([Frame("f", Mode.HOST_USER, Mapping("/a"))]).sample([Frame("f", Mode.HOST_USER, Mapping("/b"))])
    data = page_of(builder.build()).data
    assert decoded(data["children"]).tolist() == [1, 2, 0, 0] and data["names"] == ["f", "thread"]


@pytest.mark.parametrize("wall_start", [None, float("inf"), float("nan")])
def test_a_time_that_is_none_is_left_out(wall_start: float | None) -> None:
    assert page_of(replace(profiles.example(), wall_start=wall_start)).data["started"] is None


def test_what_is_known_of_the_recording_comes_along() -> None:
    data = page_of(profiles.example()).data
    assert data["host"] == "host" and data["started"] == 1_700_000_000.25 and data["notes"] == ["9 of 9 guest samples paired"]
    assert data["seconds"] == pytest.approx(0.010_250_876)
    assert [(event["name"], event["clock"]) for event in data["events"]] == [("cpu-clock", True)]


def test_the_policy_runs_this_script_and_nothing_else() -> None:
    page = page_of(profiles.example())
    (policy,) = (node.attributes["content"] for node in page.root.all("meta") if node.attributes.get("http-equiv") == "Content-Security-Policy")
    (style,) = page.root.all("style")
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (page.script, style.text)]
    assert policy.split("; ") == [
        "default-src 'none'",
        f"script-src 'sha256-{hashes[0]}'",
        f"style-src 'sha256-{hashes[1]}'",
        "base-uri 'none'",
        "form-action 'none'",
        "require-trusted-types-for 'script'",
    ]
    # Before all that it is about.
    assert page.raw.index(b"Content-Security-Policy") < min(page.raw.index(b"<style"), page.raw.index(b"<script"))


def test_nothing_is_loaded_and_no_text_is_made_into_code() -> None:
    page = page_of(profiles.example())
    assert not re.search(rb"https?:|\burl\(|@import", page.raw)
    assert not [name for node in _all(page.root) for name in node.attributes if re.fullmatch("src|href|action|style|on.*", name)]
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|\bFunction\b|\bimport\b|setTimeout|</|<!--", page.script)


def test_hostile_names_do_not_get_out() -> None:
    builder = ProfileBuilder(events=[*HOSTILE], notes=HOSTILE)
    for number, name in enumerate(HOSTILE):
        builder.sample([Frame(name, Mode.GUEST_USER, Mapping(name)), *profiles.label_frames(name, name)], event=number, vm=Vm(number + 1, name), comm=name)
    page = page_of(replace(builder.build(), hostname="".join(HOSTILE)))
    assert not set(page.block.text) & set("<>&") and page.block.text.isprintable()
    assert _skeleton(page.root) == _skeleton(page_of(profiles.example()).root)
    shown = {name for event in range(len(HOSTILE)) for path in page.stacks(event) for name in path}
    assert len(shown) == len(HOSTILE) and all(name.isprintable() for name in shown)
    assert {"</script><script>alert(1)</script>", r"\xe2\x80\xaeevil\xe2\x81\xa6", r"nul\x00", r"\xe2\x80\xa8\xe2\x80\xa9", r"\x1b[31m"} < shown


def test_same_profile_same_bytes() -> None:
    assert page_of(profiles.big(1000, 100)).raw == page_of(profiles.big(1000, 100)).raw


def test_a_hundred_thousand_stacks_take_little_time() -> None:
    """Some 0.4 s of CPU; a loop over samples or nodes would be many times that."""
    profile, out = profiles.big(samples=200_000, stacks=100_000), io.BytesIO()
    begin = time.process_time()
    flamegraph.write(profile, out)
    assert time.process_time() - begin < 2
    assert len(out.getvalue()) < 20_000_000


@settings(deadline=None)
@given(profiles.profiles())
def test_stacks_are_those_of_folded_stacks(profile: Profile) -> None:
    page = page_of(profile)
    sums = [page.stacks(event) for event in range(len(page.data["events"]))]
    assert sum(sums, Counter()) == _folded(profile, "samples")
    data = page.data
    texts = [data["host"], *data["notes"], *data["names"], *data["modules"], *(event["name"] for event in data["events"])]
    assert all(text.isprintable() for text in texts)
    assert page.raw.isascii() and _skeleton(page.root) == _skeleton(page_of(ProfileBuilder().build()).root)


@settings(deadline=None)
@given(profiles.profiles(profiles.st.sampled_from(["a", "b", "c:u"])))
def test_periods_are_those_of_folded_stacks(profile: Profile) -> None:
    unique = replace(profile, events=[f"{number}{event}" for number, event in enumerate(profile.events)])
    page = page_of(unique)
    for number, event in enumerate(page.data["events"]):
        assert page.stacks(number, "period") == _folded(_of_event(unique, event["name"]), "period")
