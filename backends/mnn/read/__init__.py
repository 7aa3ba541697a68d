"""An independent reader of MNN files."""
