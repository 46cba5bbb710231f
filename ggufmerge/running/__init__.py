"""A plan becomes a file: tasks, the worker that does them, and how far they are."""
