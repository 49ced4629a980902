"""Reads the kernel's files: KSM's folder, huge pages, NUMA nodes, memory and swap."""

from __future__ import annotations

import re

from virtksm.doctor.facts import Kernel, Swap, Unknown
from virtksm.doctor.reading.files import Root
from virtksm.host.local_facts import parse_choice, parse_meminfo
from virtksm.host.proc_files import NUMBER
from virtksm.model.snapshot import PARAMETERS, HostMemory

KSM = "sys/kernel/mm/ksm"
NUMBERS = (*PARAMETERS, "run", "max_page_sharing", "use_zero_pages", "ksm_zero_pages", "pages_shared", "pages_sharing")
MAX_LETTERS = 40
"""Of a choice or a release."""


def read_kernel(root: Root, *, page_kib: int) -> Kernel:
    """Read all that the kernel's checks need; what cannot be read is Unknown."""
    release = root.text("proc/sys/kernel/osrelease")
    memory, swap = _read_memory(root)
    return Kernel(
        release=release.strip()[:MAX_LETTERS] if isinstance(release, str) else "of unknown release",
        has_ksm=root.is_folder(KSM),
        numbers={name: root.number(f"{KSM}/{name}") for name in NUMBERS},
        advisor_mode=_read_choice(root, f"{KSM}/advisor_mode"),
        huge_pages=_read_choice(root, "sys/kernel/mm/transparent_hugepage/enabled"),
        memory_nodes=_read_nodes(root),
        memory=memory,
        swap=swap,
        page_kib=page_kib,
    )


def parse_swap(text: str) -> Swap:
    """Parse /proc/meminfo; raises ValueError if a figure is missing."""
    figures = dict(re.findall(rf"^(SwapTotal|SwapFree): *({NUMBER}) kB$", text, re.MULTILINE))
    if len(figures) != 2:
        raise ValueError("SwapTotal or SwapFree is missing")
    return Swap(total_kib=int(figures["SwapTotal"]), free_kib=int(figures["SwapFree"]))


def parse_count(text: str) -> int:
    """Count what a kernel's list names, such as 3 for "0-1,4"; raises ValueError if it is none."""
    span = r"\d{1,5}(-\d{1,5})?"
    if not re.fullmatch(rf"{span}(,{span})*\n?", text, re.ASCII):  # one way to match, or digits take for ever
        raise ValueError("holds no list of numbers")
    spans = re.findall(r"(\d+)(?:-(\d+))?", text)
    return sum(int(last or first) - int(first) + 1 for first, last in spans)


def _read_choice(root: Root, path: str) -> str | Unknown | None:
    text = root.text(path)
    if not isinstance(text, str):
        return text
    choice = parse_choice(text)
    if not re.fullmatch(rf"[a-z_-]{{1,{MAX_LETTERS}}}", choice):
        return Unknown(why=f"/{path} holds no choice")
    return choice


def _read_nodes(root: Root) -> int | Unknown:
    path = "sys/devices/system/node/has_memory"
    text = root.text(path)
    if text is None:  # a kernel without NUMA
        return 1
    if isinstance(text, Unknown):
        return text
    try:
        return parse_count(text)
    except ValueError as error:
        return Unknown(why=f"/{path} {error}")


def _read_memory(root: Root) -> tuple[HostMemory | Unknown, Swap | Unknown]:
    text = root.text("proc/meminfo")
    if text is None:
        text = Unknown(why="/proc/meminfo is missing: is /proc mounted, with ProcSubset=all?")
    if isinstance(text, Unknown):
        return text, text
    memory: HostMemory | Unknown
    swap: Swap | Unknown
    try:
        memory = parse_meminfo(text)
    except ValueError as error:
        memory = Unknown(why=f"/proc/meminfo: {error}")
    try:
        swap = parse_swap(text)
    except ValueError as error:
        swap = Unknown(why=f"/proc/meminfo: {error}")
    return memory, swap
