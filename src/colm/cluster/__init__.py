"""Sources where there is no label: rows embedded, clustered, saved and looked up again."""
