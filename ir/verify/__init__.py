"""What must hold of a graph, by stage of compilation."""
