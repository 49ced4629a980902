"""Which hosts a fleet command means: named one by one, listed in a file, or in Ansible's inventory.

A URI is opened as it is, and libvirt runs the program that one may name: a file of hosts is as powerful as a script.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from virtksm.errors import ConfigError, ConfigFault, VirtksmError, reason_of
from virtksm.text import printable
from virtksm.uri import DEFAULT_URI

INVENTORY_TIMEOUT_S = 60.0
LISTS_INVENTORY = "ansible-inventory"
WHOLE = {"ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED": "true"}
"""Else Ansible leaves out what it cannot read, and succeeds."""
NAME = re.compile(r"(\w[\w.-]*@)?([A-Za-z0-9][A-Za-z0-9._-]*|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?", re.ASCII)
URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S*")
MAX_SHOWN = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetHost:
    """A host: the name by which the user knows it, and the URI by which it is asked."""

    name: str
    uri: str


def find_hosts(
    connect: Iterable[str], hosts_file: str | None, inventory: str | None, limit: str | None
) -> list[FleetHost]:
    """Return the hosts that are named, in that order, each URI once; raises VirtksmError."""
    found = [FleetHost(name=uri, uri=uri) for uri in connect]
    if hosts_file is not None:
        found += read_hosts_file(hosts_file)
    if inventory is not None:
        found += parse_inventory(list_inventory(inventory), inventory, limit)
    hosts: dict[str, FleetHost] = {}
    for one in found:
        hosts.setdefault(one.uri, one)
    return list(hosts.values())


def read_hosts_file(file: str) -> list[FleetHost]:
    """Return the hosts of a file; raises ConfigError."""
    try:
        return parse_hosts(Path(file).read_text(encoding="utf-8"), file)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError.of(file, f"cannot be read: {reason_of(error)}", f"ls -ld {file}") from error


def parse_hosts(text: str, file: str) -> list[FleetHost]:
    """Return the hosts of a file's text, one a line; raises ConfigError with every fault."""
    lines = ((number, re.sub(r"(^|\s)#.*", "", line).strip()) for number, line in enumerate(text.splitlines(), 1))
    return _checked(((f"line {number}", line, line) for number, line in lines if line), file)


def list_inventory(inventory: str, program: str = LISTS_INVENTORY) -> str:
    """Have Ansible read its inventory, and return it as JSON; raises VirtksmError.

    Without a terminal: a vault's password, say, is not asked for.
    """
    command = [program, f"--inventory={inventory}", "--list"]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=INVENTORY_TIMEOUT_S,
            check=False,
            env={**WHOLE, **os.environ},
            start_new_session=True,
        )
    except FileNotFoundError as error:
        raise VirtksmError(
            f"--inventory needs {LISTS_INVENTORY}, which is not installed",
            remedy="install ansible-core, or name the hosts in a file: --hosts FILE",
        ) from error
    except subprocess.TimeoutExpired as error:
        raise VirtksmError(
            f"{inventory}: no answer within {INVENTORY_TIMEOUT_S:g} s", remedy=" ".join(command)
        ) from error
    if done.returncode:
        lines = done.stderr.splitlines()
        said = " ".join(" ".join([line for line in lines if "ERROR" in line] or lines).split())
        said = said or f"exit code {done.returncode}"
        raise VirtksmError(f"{inventory}: {LISTS_INVENTORY} refuses it: {said}", remedy=" ".join(command))
    return done.stdout


def parse_inventory(text: str, inventory: str, limit: str | None = None) -> list[FleetHost]:
    """Return the hosts of an inventory, or of its group or host `limit`, by what `list_inventory` returns.

    Raises ConfigError with every fault.
    """
    try:
        groups = json.loads(text)
    except ValueError as error:
        problem = f"{LISTS_INVENTORY} prints no JSON: {error}"
        raise ConfigError.of(inventory, problem, f"{LISTS_INVENTORY} -i {inventory} --list") from error
    variables = groups.get("_meta", {}).get("hostvars", {})
    names = [*dict.fromkeys(_members(groups, limit or "all"))]
    if limit is not None and limit not in groups:
        names = [name for name in _members(groups, "all") if name == limit][:1]
        if not names:
            remedy = f"{LISTS_INVENTORY} -i {inventory} --graph"
            raise ConfigError.of(inventory, "no group or host has this name", remedy, key=limit)
    return _checked(((name, name, _address(name, variables.get(name, {}))) for name in names), inventory)


def _members(groups: Mapping[str, Any], group: str) -> Iterator[str]:
    listed = groups.get(group, {})
    yield from listed.get("hosts", ())
    for child in listed.get("children", ()):
        yield from _members(groups, child)


def _address(name: str, variables: Mapping[str, Any]) -> str:
    """Return the address that a host's variables give it, as a file of hosts has it."""
    if "virtksm_uri" in variables:
        return str(variables["virtksm_uri"])
    if variables.get("ansible_connection") == "local":
        return DEFAULT_URI
    host, user, port = (variables.get(f"ansible_{one}", "") for one in ("host", "user", "port"))
    host = str(host or name)
    address = f"[{host}]" if re.fullmatch(r"[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*", host) else host  # IPv6
    return f"{user}@{address}".removeprefix("@") + (f":{port}" if port else "")


def _checked(found: Iterable[tuple[str, str, str]], file: str) -> list[FleetHost]:
    """Return hosts by places in a file, names and addresses; raises ConfigError for what is no address, or no host."""
    hosts, faults = [], []
    for place, name, address in found:
        if URI.fullmatch(address) and address.isprintable():
            hosts.append(FleetHost(name=name, uri=address))
        elif NAME.fullmatch(address):
            hosts.append(FleetHost(name=name, uri=f"qemu+ssh://{address}/system"))
        else:
            problem = f"{printable(address[:MAX_SHOWN])!r} is neither the name of a host nor a libvirt URI"
            remedy = "write one such as web1, root@web1:22, [fe80::1] or qemu+tls://web1/system"
            if "{{" in address:
                remedy = f"{LISTS_INVENTORY} resolves no templates: give the host a virtksm_uri without one"
            faults.append(ConfigFault(file=file, key=place, problem=problem, remedy=remedy))
    if faults:
        raise ConfigError(faults)
    if not hosts:
        raise ConfigError.of(file, "has no hosts", "name one")
    return hosts
