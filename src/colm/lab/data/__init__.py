"""Rows of a data mixture: reading, formats, the demo's own mixture."""
