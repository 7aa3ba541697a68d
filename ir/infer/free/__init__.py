"""What tensors that nothing makes have to be, from what reads them."""
