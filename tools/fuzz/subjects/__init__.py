"""What is searched: each target makes an input and exercises a part of the product."""
