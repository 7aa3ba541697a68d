"""The rows, by who publishes the models."""
