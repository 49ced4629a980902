"""virtksm: decides and applies KSM settings on libvirt hosts, as guests start, stop and grow."""

__version__ = "0.1.0"
