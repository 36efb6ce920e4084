"""What ``tools/benchmark.py`` times, one file a group."""
