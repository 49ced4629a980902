"""The demonstration's own world: tiny real guests and a throwaway libvirt to run them in."""
