"""A real Prometheus server of a test's own, and promtool: what the agent's metrics are judged by."""

import json
import re
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.lab.hang import HANG_S
from tests.lab.ksm import wait_until
from tests.lab.ports import free_port

PROJECT = Path(__file__).parents[2]
UNPACKED = PROJECT / "build" / "prometheus" / "usr" / "bin"
"""Where script/setup has the programs of Debian's package, unless it is installed."""
CONFIGURATION = PROJECT / "conf" / "prometheus"
RULES = sorted(CONFIGURATION.glob("*.rules.yml"))

_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def fetch(url: str) -> str:
    """Get a page; raises OSError."""
    with _direct.open(url, timeout=HANG_S) as answer:
        return str(answer.read().decode("utf-8"))


def find_program(name: str) -> str:
    """Return where a program of Prometheus' package is; subprocess says what is missing."""
    return str(UNPACKED / name) if (UNPACKED / name).is_file() else name


def promtool(*arguments: str | Path, text: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run promtool to its end, whatever its exit code."""
    return subprocess.run(
        [find_program("promtool"), *arguments], check=False, capture_output=True, text=True, input=text, timeout=HANG_S
    )


def configured(folder: Path, targets: Sequence[Mapping[str, Any]], *, every: str | None = "500ms") -> Path:
    """Copy conf/prometheus into a folder, with these targets; returns prometheus.yml.

    It scrapes so often, which is also how long a scrape may take, and evaluates twice a second, as federate.yml beside
    it; with None as they say themselves.
    """
    shutil.copytree(CONFIGURATION, folder)
    list_targets(folder, targets)
    if every is not None:
        for name in ("prometheus.yml", "federate.yml"):
            text = (folder / name).read_text(encoding="utf-8")
            text = re.sub(r"(scrape_interval: )\w+", rf"\g<1>{every}", text)
            text = re.sub(r"(evaluation_interval: )\w+", r"\g<1>500ms", text)
            (folder / name).write_text(text, encoding="utf-8")
    return folder / "prometheus.yml"


def list_targets(folder: Path, targets: Sequence[Mapping[str, Any]]) -> None:
    """Put these targets into the file that Prometheus watches, all at once."""
    new = folder / "hosts.new"
    new.write_text(json.dumps(targets), encoding="utf-8")  # JSON is YAML
    new.rename(folder / "hosts.yml")


class PrivatePrometheus:
    """A server with this configuration; whoever makes it closes it."""

    def __init__(self, config: Path) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="vp", dir="/tmp")
        root = Path(self._folder.name)
        self.address = f"127.0.0.1:{free_port()}"
        self._log = root / "log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    *("setpriv", "--pdeathsig", "KILL", find_program("prometheus")),
                    f"--config.file={config}",
                    f"--storage.tsdb.path={root}/data",
                    f"--web.listen-address={self.address}",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._ready = False

    @property
    def pid(self) -> int:
        return self._process.pid

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return an instant query's result, a list of series; raises OSError for one that Prometheus refuses."""
        answer = self._ask("query", {"query": expression})
        assert answer["resultType"] in ("vector", "scalar"), answer
        result = answer["result"]
        assert isinstance(result, list)
        return result if answer["resultType"] == "vector" else [{"metric": {}, "value": result}]

    def query_range(self, expression: str, back_s: float, step_s: float) -> None:
        """Have it answer a query for each step of the last seconds; raises OSError for one that Prometheus refuses."""
        now_s = time.time()
        self._ask(
            "query_range", {"query": expression, "start": str(now_s - back_s), "end": str(now_s), "step": str(step_s)}
        )

    def value(self, expression: str) -> float:
        """Return the value of a query that has one series."""
        (series,) = self.query(expression)
        return float(series["value"][1])

    def rules(self) -> list[dict[str, Any]]:
        """Return all rules that it has read, with their state."""
        return [rule for group in self._ask("rules", {})["groups"] for rule in group["rules"]]

    def wait_for(self, expression: str) -> None:
        """Wait until a query returns something."""
        wait_until(lambda: self.query(expression) != [], HANG_S, f"Prometheus to see {expression}")

    def close(self) -> None:
        self._process.kill()
        self._process.wait(HANG_S)
        self._folder.cleanup()

    def _ask(self, what: str, question: Mapping[str, str]) -> dict[str, Any]:
        if not self._ready:
            self._wait_ready()
        answer = json.loads(fetch(f"http://{self.address}/api/v1/{what}?{urllib.parse.urlencode(question)}"))
        assert answer["status"] == "success", answer
        assert isinstance(answer["data"], dict)
        return answer["data"]

    def _wait_ready(self) -> None:
        try:
            wait_until(self._is_ready, HANG_S, "Prometheus to be ready")
        except TimeoutError as error:
            error.add_note(self._log.read_text(encoding="utf-8", errors="replace"))
            raise
        self._ready = True

    def _is_ready(self) -> bool:
        try:
            return "Ready" in fetch(f"http://{self.address}/-/ready")
        except (urllib.error.URLError, ConnectionError):
            return False
