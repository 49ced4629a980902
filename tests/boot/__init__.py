"""A booted Debian in a container, on the real kernel: `script/test boot`, `script/test install`."""
