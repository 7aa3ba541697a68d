"""Choices between graphs: their sides are converted as parts of one graph, and the net is put together from what that gave.

The converter knows no types of what a side of a choice reads from outside and takes it for a vector of integers, so that it
misreads convolutions among others. As parts of the main graph, sides are converted like everything else.
"""
