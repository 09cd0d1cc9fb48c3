"""Rows of a data mixture: reading, formats, and the demo mixture."""
