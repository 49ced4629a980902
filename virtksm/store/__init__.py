"""What outlives a process: state, switch, history, traces."""
