"""All of virtksm, imported, and what it imports late: what `forked` forks from.

As another user a fork may import nothing from a checkout in root's home.
"""

import importlib
import pkgutil

import libvirt_qemu  # noqa: F401

import virtksm

for _module in pkgutil.walk_packages(virtksm.__path__, "virtksm."):
    if not _module.name.endswith("__main__"):
        importlib.import_module(_module.name)
