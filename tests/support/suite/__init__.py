"""The run of the tests as a whole: what was raised in it, and its processes."""
