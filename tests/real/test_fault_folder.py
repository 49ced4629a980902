"""Faults of the runtime folder under an agent: full, read-only, removed; and of the clock."""

import shutil
import subprocess
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from tests.lab.ksm import DEFAULTS, Ksm
from tests.real.agent_process import AgentFactory, AgentHome

pytestmark = pytest.mark.real


@pytest.fixture
def small_folder(agent_home: AgentHome) -> Iterator[Path]:
    """Lend a runtime folder on a file system of 64 KiB of its own."""
    folder = agent_home.runtime_dir
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k,mode=755", "virtksm-test", folder], check=True)
    try:
        yield folder
    finally:
        while folder.is_mount():
            subprocess.run(["umount", "--lazy", folder], check=True)


def fill(folder: Path) -> Path:
    """Fill the file system to its last byte."""
    path = folder / "filling"
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return path


def test_a_full_or_read_only_runtime_folder_stops_the_writing_and_nothing_else(
    ksm: Ksm, small_folder: Path, start_agent: AgentFactory
) -> None:
    agent = start_agent()
    filling = fill(small_folder)
    agent.poke()
    failed = agent.wait_for("pass_failed")
    assert str(agent.home.state) in failed["error"]
    assert "No space left on device" in failed["error"]
    assert f"df {agent.home.state.parent}" in failed["remedy"]
    assert ksm.read("pages_to_scan") == 1, "nothing is written on the strength of a state that cannot be kept"
    filling.unlink()
    assert agent.step()["after"]["pages_to_scan"] == ksm.read("pages_to_scan") == 2
    # Over it, since a file system in use for writing cannot be made read-only in order.
    subprocess.run(["mount", "--bind", small_folder, small_folder], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", small_folder], check=True)
    agent.poke()
    assert "Read-only file system" in agent.wait_for("pass_failed")["error"]
    assert ksm.read("pages_to_scan") == 2
    subprocess.run(["umount", small_folder], check=True)
    assert agent.step()["after"]["pages_to_scan"] == ksm.read("pages_to_scan") == 3
    assert agent.stop() == 0
    assert ksm.settings() == DEFAULTS


def test_a_removed_runtime_folder_loses_neither_baseline_nor_steps(ksm: Ksm, start_agent: AgentFactory) -> None:
    ksm.write(pages_to_scan=123, sleep_millisecs=45)
    agent = start_agent()
    shutil.rmtree(agent.home.runtime_dir)
    assert agent.step()["after"]["pages_to_scan"] == ksm.read("pages_to_scan") == 2
    assert agent.lines("foreign_value_found") == []
    shutil.rmtree(agent.home.runtime_dir)
    assert agent.stop() == 0
    assert ksm.settings() == (123, 45)


def test_a_clock_that_is_set_forward_and_back_changes_nothing(
    ksm: Ksm, agent_home: AgentHome, start_agent: AgentFactory
) -> None:
    (library,) = Path("/usr/lib").glob("*/faketime/libfaketime.so.1")
    clock = agent_home.folder / "clock"
    clock.write_text("+0\n")
    agent = start_agent(
        environ={
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(clock),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
    )
    told = [datetime.fromisoformat(agent.lines("pass_completed")[-1]["timestamp"])]
    for step, days in enumerate((400, -400, 0), start=2):
        new = clock.with_suffix(".new")
        new.write_text(f"{days:+d}d\n")
        new.replace(clock)  # whole
        line = agent.step()
        told.append(datetime.fromisoformat(line["timestamp"]))
        assert line["after"]["pages_to_scan"] == ksm.read("pages_to_scan") == step
        assert 0 <= line["event_to_applied_s"] < 60
    assert told[1] - told[0] > timedelta(days=399), "the agent did see the other time"
    assert told[2] < told[0]
    assert agent.lines("pass_failed") == []
    assert agent.stop() == 0
    assert ksm.settings() == DEFAULTS
