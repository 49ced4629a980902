"""The documents' lists and the JSON Schema, as the program has them: `python -m manual.references` rewrites them.

A list stands between `<!-- generated: NAME -->` and `<!-- end -->`.
"""

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path

from manual.json_schema import json_schema
from virtksm.agent.metrics.definitions import METRICS, Metric
from virtksm.doctor.checks import CHECKS

PROJECT = Path(__file__).resolve().parents[1]
DOCS = PROJECT / "docs"


def metrics_list() -> str:
    """Return every metric with its labels; a counter's name says that it is one."""
    return "".join(
        f"- `{one.name}{_labels(one)}`: {one.meaning}{' (histogram)' * (one.kind == 'histogram')}\n" for one in METRICS
    )


def checks_list() -> str:
    """Return every check of doctor, by group."""
    groups = groupby(CHECKS, key=lambda one: one.group)
    return "".join(f"- {group}: {', '.join(f'`{one.name}`' for one in checks)}\n" for group, checks in groups)


@dataclass(frozen=True, slots=True, kw_only=True)
class Constant:
    """A number of the adaptive law; `value` as the source has it, `source` and `meaning` of its docstring, or empty."""

    module: str
    name: str
    value: str
    unit: str
    source: str
    meaning: str


def constants() -> Iterator[Constant]:
    """Yield the module-level constants of the adaptive law that are numbers, or have some, by module."""
    for path in sorted(law_files(), key=_module):
        body = ast.parse(path.read_text(encoding="utf-8")).body
        for node, after in pairwise([*body, ast.Pass()]):
            if isinstance(node, ast.Assign):
                targets = node.targets
            elif isinstance(node, ast.AnnAssign):
                targets = [node.target]
            else:
                continue
            names = [one.id for target in targets for one in ast.walk(target) if isinstance(one, ast.Name)]
            if not (node.value and _has_number(node.value) and all(name.isupper() for name in names)):
                continue
            has_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            source, meaning = _source_and_meaning(ast.literal_eval(ast.unparse(after)) if has_text else "")
            values = node.value.elts if isinstance(node.value, ast.Tuple) and len(names) > 1 else [node.value]
            for name, value in zip(names, values, strict=True):
                yield Constant(
                    module=_module(path),
                    name=name,
                    value=_shown(value),
                    unit=_unit(name),
                    source=source,
                    meaning=meaning if name == names[0] else f"See `{names[0]}`.",
                )


def law_files() -> list[Path]:
    """Return the files whose numbers are the adaptive law's: the policy, and what asks and measures for it."""
    package = PROJECT / "virtksm"
    others = ("tuning/cycle.py", "agent/dirty_rates.py", "agent/merged_memory.py")
    return [*package.glob("policy/adaptive/*.py"), *(package / name for name in others)]


def constants_list() -> str:
    """Return a table of every number of the adaptive law."""
    rows = [
        ("constant", "value", "unit", "source", "meaning"),
        ("---",) * 5,
        *((f"`{one.module}.{one.name}`", f"`{one.value}`", one.unit, one.source, one.meaning) for one in constants()),
    ]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


LISTS: dict[str, tuple[str, Callable[[], str]]] = {
    "checks": ("reference.md", checks_list),
    "constants": ("constants.md", constants_list),
    "metrics": ("metrics.md", metrics_list),
}
"""By name: the document that has it, and what makes it."""


def filled(document: str, name: str, text: str) -> str:
    """Return a document with a list at its place; raises ValueError if there is none."""
    place = re.compile(rf"(<!-- generated: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
    if len(place.findall(document)) != 1:
        raise ValueError(f"no one place for {name}")
    return place.sub(lambda found: found[1] + text + found[2], document)


def rewritten() -> Iterator[tuple[Path, str]]:
    """Yield each document that has a list, and its text as it should be."""
    for name, (document, make) in LISTS.items():
        path = DOCS / document
        yield path, filled(path.read_text(encoding="utf-8"), name, make())
    yield DOCS / "json-schema.json", json_schema()


UNITS = {
    "_S_PER_KIB": "s/KiB",
    "_S_PER_GIB": "s/GiB",
    "_KIB_PER_GIB": "KiB/GiB",
    "_KIB_PER_S": "KiB/s",
    "_BYTES": "bytes",
    "_S": "s",
    "_MS": "ms",
    "_KIB": "KiB",
    "_PERCENT": "%",
    "_PAGES": "pages",
    "_SCANS": "full scans",
}
"""By the end of a constant's name."""
SOURCE = re.compile(r" \(((?:chosen|measured|reported|kernel|libvirt)\b[^)]*)\)")


def _module(path: Path) -> str:
    return path.parent.name if path.stem == "__init__" else path.stem


def _unit(name: str) -> str:
    """Return a constant's unit, which its name ends with; a bare number has none."""
    return next((unit for end, unit in UNITS.items() if name.endswith(end)), "-")


def _shown(value: ast.expr) -> str:
    """Write a value as the source does, but one by cases by their names."""
    if not isinstance(value, ast.Dict):
        return ast.unparse(value)
    cases = [one.attr.lower() for one in value.keys if isinstance(one, ast.Attribute)]
    return ", ".join(f"{case} {ast.unparse(one)}" for case, one in zip(cases, value.values, strict=True))


def _source_and_meaning(docstring: str) -> tuple[str, str]:
    """Return a docstring's first bracket that says where the number is from, and the rest."""
    text = " ".join(docstring.split())
    found = SOURCE.search(text)
    return (found[1] if found else ""), SOURCE.sub("", text, count=1)


def _has_number(value: ast.expr) -> bool:
    """Tell whether an expression is of numbers: has some, or refers to another constant, and has no text."""
    constants_in = [one.value for one in ast.walk(value) if isinstance(one, ast.Constant)]
    return bool(constants_in) and not any(isinstance(one, str) for one in constants_in)


def _labels(metric: Metric) -> str:
    return f"{{{','.join(metric.labels)}}}" if metric.labels else ""


if __name__ == "__main__":
    for one_path, one_text in rewritten():
        one_path.write_text(one_text, encoding="utf-8")
