"""The demonstration, of a checkout alone: tiny real guests, and a throwaway libvirt to run them in."""
