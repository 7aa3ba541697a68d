"""The graph and what is read off it: nodes, values, facts, order, comparison, networkx views."""
