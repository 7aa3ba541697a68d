"""The operator table: arity, attributes, traits, inference and meaning of every operator."""
