"""The documents: what they link to, name and take from the program is there."""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from manual.json_schema import fields_of, objects
from manual.references import constants, filled, rewritten
from manual.tree import describe
from tests.lab.fleet_metrics import FleetHost
from virtksm.cli.answers import NOW, PASS, SETTINGS, STATUS
from virtksm.config.schema import all_keys
from virtksm.json_output import output_name
from virtksm.policy.rules import MEANINGS

PROJECT = Path(__file__).parents[2]
DOCUMENTS = sorted([*PROJECT.glob("*.md"), *(PROJECT / "docs").rglob("*.md"), *(PROJECT / "packaging").rglob("*.md")])
SOURCES = ("bench", "cockpit", "conf", "hooks", "manual", "packaging", "script", "tests", "virtksm")


def anchors(document: Path) -> set[str]:
    """Return a document's headings as GitHub links them."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def fields(shape: object) -> Iterator[str]:
    """Yield every field's name of an answer's shape."""
    match shape:
        case dict():
            for name, inner in shape.items():
                yield name
                yield from fields(inner)
        case list() | tuple():
            for inner in shape:
                yield from fields(inner)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(PROJECT)))
def test_every_link_leads_to_a_file_and_a_heading(document: Path) -> None:
    links = re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", document.read_text(encoding="utf-8"))
    places = [(document.parent / link if link else document, anchor) for link, anchor in links]
    assert [str(path) for path, _ in places if not path.exists()] == []
    assert [anchor for path, anchor in places if anchor and anchor not in anchors(path)] == []


def code(document: Path) -> Iterator[str]:
    """Yield what a document has as code: each line of a block, and each span."""
    text = document.read_text(encoding="utf-8")
    for number, part in enumerate(text.split("```")):
        yield from part.splitlines()[1:] if number % 2 else (" ".join(span.split()) for span in part.split("`")[1::2])


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(PROJECT)))
def test_every_command_option_and_key_is_the_programs(document: Path) -> None:
    commands = {one.words: one for one in describe().walk()}
    keys = {name.rpartition(".")[2] for name in all_keys()} | {"access_drivers"}  # the last is libvirt's
    unknown = []
    for line in code(document):
        for called in re.findall(r"(?:^|[;&|] |sudo |-- |HOST )virtksm( [a-z-][^|;&>#]*)", line):
            words: tuple[str, ...] = ("virtksm",)
            for word in called.split():
                if (*words, word) in commands:
                    words += (word,)
                elif word.startswith("-"):
                    flags = {flag for option in commands[words].options for flag in option.flags}
                    unknown += [] if word.partition("=")[0] in flags else [called]
                elif commands[words].commands and word.islower():
                    unknown.append(called)
        unknown += [key for key in re.findall(r"^([a-z_]+) = [\"[]", line) if key not in keys]
    assert unknown == []


def test_the_readme_leads_to_every_document() -> None:
    readme = (PROJECT / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in sorted((PROJECT / "docs").glob("*.md")) if f"docs/{path.name}" not in readme] == []


def test_every_document_that_a_file_names_is_there() -> None:
    texts = [path for folder in SOURCES for path in (PROJECT / folder).rglob("*") if path.is_file()]
    named = {
        (str(path.relative_to(PROJECT)), name)
        for path in texts
        if path.suffix in {"", ".css", ".html", ".js", ".json", ".py", ".rules", ".service", ".toml", ".yml"}
        for name in re.findall(r"\bdocs/[a-z]+\.md", path.read_text(encoding="utf-8", errors="replace"))
    }
    assert [one for one in sorted(named) if not (PROJECT / one[1]).exists()] == []


def test_the_tables_are_the_programs() -> None:
    """`python -m manual.references` mends it."""
    for path, text in rewritten():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: run python -m manual.references"


def test_every_number_of_the_adaptive_law_says_what_it_is_and_from_where() -> None:
    law = {f"{one.module}.{one.name}": one for one in constants()}
    assert [name for name, one in law.items() if not (one.source and one.meaning)] == []
    assert [*law] == sorted(law, key=lambda name: name.partition(".")[0])
    found = {name: (one.value, one.unit, one.source) for name, one in law.items()}
    assert found["growth.LULL_SHARE"] == ("0.25", "-", "measured"), "one of two in a line"
    assert found["state.DEFAULT_COST_S_PER_KIB"][1:] == ("s/KiB", "measured")
    assert found["cycle.SENSE_GUEST_S"][1:] == ("s", "measured")
    assert found["merged_memory.MAX_SHARE"] == ("0.01", "-", "chosen")
    assert found["dirty_rates.MAX_HANGING"] == ("1", "-", "chosen")


def test_a_document_without_a_place_for_a_table_is_an_error() -> None:
    assert filled("<!-- generated: metrics -->\nold\n<!-- end -->\n", "metrics", "new\n").splitlines()[1] == "new"
    with pytest.raises(ValueError, match="no one place for metrics"):
        filled("# Metrics\n", "metrics", "new\n")


def test_every_field_of_a_pass_and_a_status_is_in_the_schema() -> None:
    known = {name for kind in objects().values() for name in fields_of(kind)}
    names = {output_name(name) for shape in (SETTINGS, PASS, NOW, STATUS) for name in fields(shape)}
    assert names - known == set()


def test_every_rule_of_a_policy_is_explained() -> None:
    policies = (PROJECT / "docs/policies.md").read_text(encoding="utf-8")
    rules = {rule for of_one in MEANINGS.values() for rule in of_one}
    assert [rule for rule in sorted(rules) if f"`{rule}`" not in policies] == []


def test_every_promise_has_a_test_that_is_there() -> None:
    promises = (PROJECT / "docs/promises.md").read_text(encoding="utf-8")
    tests = "\n".join(path.read_text(encoding="utf-8") for path in (PROJECT / "tests").rglob("*.py"))
    for promise in re.findall(r"^- (.*?)$(?!\n  )", promises, re.MULTILINE | re.DOTALL):
        names, files = re.findall(r"`(test_\w+)`", promise), re.findall(r"`(tests/[^`]*)`", promise)
        assert names or files or re.search(r"[.,]\s+(soak|boot|install)\b", promise), promise
        assert [name for name in names if f"def {name}(" not in tests] == []
        assert [name for name in files if not (PROJECT / name).exists()] == []


def test_the_probe_for_opennebula_tells_the_safe_room_and_0_while_that_is_unknown(tmp_path: Path) -> None:
    """A probe that fails would have OpenNebula drop all that the host's other probes tell."""
    [probe] = re.findall(r"```\n(#!/bin/sh\n.*?)```", (PROJECT / "docs/fleet.md").read_text("utf-8"), re.DOTALL)
    file = tmp_path / "virtksm.prom"

    def told() -> str:
        command = probe.replace("/var/lib/virtksm/virtksm.prom", str(file))
        return subprocess.run(["sh", "-c", command], check=True, capture_output=True, text=True).stdout

    assert told() == "VIRTKSM_ROOM=0\n", "there is no file"
    page = FleetHost(3, 1, refuses=False).page()
    file.write_bytes(page)
    assert told() == "VIRTKSM_ROOM=4096\n"
    file.write_bytes(page.replace(b"virtksm_room_bytes{", b"virtksm_other_bytes{"))
    assert told() == "VIRTKSM_ROOM=0\n", "libvirt is silent"
    file.write_bytes(page)
    os.utime(file, (0, 0))
    assert told() == "VIRTKSM_ROOM=0\n", "the agent was killed"
