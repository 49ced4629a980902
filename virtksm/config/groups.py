"""The groups of this machine's users, as its name service knows them."""

from __future__ import annotations


def group_id(name: str) -> int | None:
    """Return a group's number, None if there is none of that name."""
    import grp  # only where a group is configured

    try:
        return grp.getgrnam(name).gr_gid
    except (KeyError, ValueError):  # unknown, or no name at all (a NUL in it)
        return None
