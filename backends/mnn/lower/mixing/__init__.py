"""What joins the positions of a sequence, in MNN's operators."""
