"""The executor tests that come with CPython, run on PreforkExecutor."""
