"""The world: libvirt, /proc, /sys, systemd."""
