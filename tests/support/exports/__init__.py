"""Text for tests: chat templates and conversations."""
