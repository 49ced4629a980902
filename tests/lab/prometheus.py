"""A real Prometheus server of a test's own, and promtool: what the agent's metrics are judged by."""

from __future__ import annotations

import json
import subprocess
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tests.lab.ksm import wait_until
from tests.lab.ports import free_port

LIMIT_S = 60.0
PROJECT = Path(__file__).parents[2]
UNPACKED = PROJECT / "build" / "prometheus" / "usr" / "bin"
"""Where script/setup has the programs of Debian's package, unless it is installed."""
RULES = sorted((PROJECT / "conf" / "prometheus").glob("*.rules.yml"))
JOB = "virtksm"

_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def fetch(url: str) -> str:
    """Get a page; raises OSError."""
    with _direct.open(url, timeout=LIMIT_S) as answer:
        return str(answer.read().decode("utf-8"))


def find_program(name: str) -> str:
    """Return where a program of Prometheus' package is; subprocess says what is missing."""
    return str(UNPACKED / name) if (UNPACKED / name).is_file() else name


def promtool(*arguments: str | Path, text: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run promtool to its end, whatever its exit code."""
    return subprocess.run(
        [find_program("promtool"), *arguments], check=False, capture_output=True, text=True, input=text, timeout=LIMIT_S
    )


class PrivatePrometheus:
    """A server that scrapes one address twice a second, with rules if wanted; whoever makes it closes it."""

    def __init__(self, target: str, rules: Iterable[Path] = ()) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="vp", dir="/tmp")
        root = Path(self._folder.name)
        config = {
            "global": {"scrape_interval": "500ms", "evaluation_interval": "500ms"},
            "rule_files": [str(path) for path in rules],
            "scrape_configs": [{"job_name": JOB, "static_configs": [{"targets": [target]}]}],
        }
        (root / "prometheus.yml").write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
        self._address = f"127.0.0.1:{free_port()}"
        self._log = root / "log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    find_program("prometheus"),
                    f"--config.file={root}/prometheus.yml",
                    f"--storage.tsdb.path={root}/data",
                    f"--web.listen-address={self._address}",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._ready = False

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return an instant query's result, a list of series; raises OSError for one that Prometheus refuses."""
        answer = self._ask("query", {"query": expression})
        assert answer["resultType"] in ("vector", "scalar"), answer
        result = answer["result"]
        assert isinstance(result, list)
        return result if answer["resultType"] == "vector" else [{"metric": {}, "value": result}]

    def value(self, expression: str) -> float:
        """Return the value of a query that has one series."""
        (series,) = self.query(expression)
        return float(series["value"][1])

    def rules(self) -> list[dict[str, Any]]:
        """Return all rules that it has read, with their state."""
        return [rule for group in self._ask("rules", {})["groups"] for rule in group["rules"]]

    def wait_for(self, expression: str) -> None:
        """Wait until a query returns something."""
        wait_until(lambda: self.query(expression) != [], LIMIT_S, f"Prometheus to see {expression}")

    def close(self) -> None:
        self._process.kill()
        self._process.wait(LIMIT_S)
        self._folder.cleanup()

    def _ask(self, what: str, question: Mapping[str, str]) -> dict[str, Any]:
        if not self._ready:
            self._wait_ready()
        answer = json.loads(fetch(f"http://{self._address}/api/v1/{what}?{urllib.parse.urlencode(question)}"))
        assert answer["status"] == "success", answer
        assert isinstance(answer["data"], dict)
        return answer["data"]

    def _wait_ready(self) -> None:
        try:
            wait_until(self._is_ready, LIMIT_S, "Prometheus to be ready")
        except TimeoutError as error:
            error.add_note(self._log.read_text(encoding="utf-8", errors="replace"))
            raise
        self._ready = True

    def _is_ready(self) -> bool:
        try:
            return "Ready" in fetch(f"http://{self._address}/-/ready")
        except (urllib.error.URLError, ConnectionError):
            return False
