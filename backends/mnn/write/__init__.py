"""Writers of MNN model directories."""
