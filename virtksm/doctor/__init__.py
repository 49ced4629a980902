"""Obstacles to KSM on this host: facts are read, each check judges them, nothing is written.

`reading` touches the world and returns `facts`; `checks` are pure functions of these, in the order of one table; each
returns a `finding`.
"""
