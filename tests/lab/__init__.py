"""The laboratory: a private libvirtd, the KSM lock, and guests, for tests and benchmarks on the real thing."""
