"""What is wrong with an MNN model directory, by release."""
