"""What stands in the way of KSM on this host: facts are read, each check judges them, nothing is written.

`reading` touches the world and gives `facts`; `checks` are pure functions of these, in the order of one table;
`finding` is what they answer.
"""
