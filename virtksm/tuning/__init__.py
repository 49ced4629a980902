"""One pass: sense, decide, actuate, report. Imports nothing that is for people."""
