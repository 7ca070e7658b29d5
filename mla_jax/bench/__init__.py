"""Measurements: rows, tables and the peers they are compared with. Import from the modules."""
