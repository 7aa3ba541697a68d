"""A toy runtime and everything that compiles for it: a dialect, a lowering, a target, a backend, an interpreter."""
