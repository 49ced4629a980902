"""Benchmarks on the real libvirt and the real kernel, started by script/bench: they judge speed, which no test does."""
