"""Values only: what was sensed, what was decided, what became of it."""
