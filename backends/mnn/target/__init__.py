"""What each MNN release feeds, reads and computes right."""
