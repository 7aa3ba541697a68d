"""What passes ask about the runtime that a graph is compiled for."""
