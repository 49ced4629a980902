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
    """A number of the adaptive law; `value` as the source has it, `meaning` its docstring, or empty."""

    module: str
    names: tuple[str, ...]
    value: str
    meaning: str


def constants() -> Iterator[Constant]:
    """Yield the module-level constants of the adaptive law that are numbers, or have some, in reading order."""
    package = PROJECT / "virtksm"
    for path in [*sorted(package.glob("policy/adaptive/*.py")), package / "agent" / "dirty_rates.py"]:
        body = ast.parse(path.read_text(encoding="utf-8")).body
        for node, after in pairwise([*body, ast.Pass()]):
            if isinstance(node, ast.Assign):
                targets = node.targets
            elif isinstance(node, ast.AnnAssign):
                targets = [node.target]
            else:
                continue
            names = tuple(one.id for target in targets for one in ast.walk(target) if isinstance(one, ast.Name))
            if not (node.value and _has_number(node.value) and all(name.isupper() for name in names)):
                continue
            has_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            meaning = " ".join(ast.literal_eval(ast.unparse(after)).split()) if has_text else ""
            module = path.parent.name if path.stem == "__init__" else path.stem
            yield Constant(module=module, names=names, value=ast.unparse(node.value), meaning=meaning)


def constants_list() -> str:
    """Return every number of the adaptive law, with its unit, reason and source as its docstring has them."""
    return "".join(
        f"- `{one.module}.{', '.join(one.names)} = {one.value}`: {one.meaning.replace(' (chosen).', '.')}\n"
        for one in constants()
    )


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


def _has_number(value: ast.expr) -> bool:
    """Tell whether an expression is of numbers: has some, or refers to another constant, and has no text."""
    constants_in = [one.value for one in ast.walk(value) if isinstance(one, ast.Constant)]
    return bool(constants_in) and not any(isinstance(one, str) for one in constants_in)


def _labels(metric: Metric) -> str:
    return f"{{{','.join(metric.labels)}}}" if metric.labels else ""


if __name__ == "__main__":
    for one_path, one_text in rewritten():
        one_path.write_text(one_text, encoding="utf-8")
