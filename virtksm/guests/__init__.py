"""What KSM does for each guest, for people: no pass imports it."""
