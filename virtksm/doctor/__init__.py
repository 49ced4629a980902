"""Obstacles to KSM on this host: each check reads what it needs and judges it; nothing is written.

`reading` has the readers, one a source; `facts` is what a check may ask for; `checks` are functions of these, in the
order of one table; each returns a `finding`.
"""
