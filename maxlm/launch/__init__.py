"""Starting runs: several processes on this machine."""
