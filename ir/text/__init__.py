"""The text form of a graph: printer, lexer, parser."""
