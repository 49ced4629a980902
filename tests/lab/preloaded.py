"""All of virtksm, imported: what `forked` forks from."""

import importlib
import pkgutil

import virtksm

for _module in pkgutil.walk_packages(virtksm.__path__, "virtksm."):
    if not _module.name.endswith("__main__"):
        importlib.import_module(_module.name)
