"""Simulated worlds for tests: disks in memory, a file system that loses power."""
