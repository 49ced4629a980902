"""What SELinux's policy allows, by the kernel's own answer."""

from __future__ import annotations

import os

from virtksm.doctor.finding import CannotTell
from virtksm.doctor.reading.files import Root

FOLDER = "sys/fs/selinux"


def may_execute(root: Root, domain: str, label: str) -> bool:
    """Return whether a domain may execute files with this label; raises CannotTell.

    Source: sel_write_access in the kernel's security/selinux/selinuxfs.c.
    """
    kind = root.number(f"{FOLDER}/class/file/index")
    permission = root.number(f"{FOLDER}/class/file/perms/execute")
    if kind is None or permission is None:
        raise CannotTell(f"/{FOLDER} does not name the permission to execute")

    def ask(path: str) -> str:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.write(descriptor, f"{domain} {label} {kind}".encode())
            return os.read(descriptor, 200).decode("ascii", "replace")
        finally:
            os.close(descriptor)

    return allows(root.read(f"{FOLDER}/access", ask, ""), permission)


def allows(answer: str, permission: int) -> bool:
    """Return whether an answer of `access` allows a permission; raises CannotTell.

    Its fields: what is allowed, all ones, what is audited in two fields, a number, and flags: 1 is a permissive domain.
    """
    try:
        allowed, *_, flags = (int(field, 16) for field in answer.strip("\0\n ").split(" "))
    except ValueError as error:
        raise CannotTell(f"/{FOLDER}/access answers {answer!r}") from error
    return bool(allowed >> (permission - 1) & 1 or flags & 1)
