"""Modules that check inputs in an application."""
