"""What stands in a model's configuration, and the specs by which rows of families say where."""
