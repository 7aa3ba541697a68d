"""Choices and loops: their bodies are converted as parts of one graph, and the net is put together from what that gave.

The converter knows no types of what a body reads from outside and takes it for a vector of integers, so that it misreads
convolutions among others. As parts of the main graph, bodies are converted like everything else.
"""
