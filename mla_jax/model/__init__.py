"""The transformer and its attention variants. Import from the modules."""
