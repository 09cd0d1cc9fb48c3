"""The program around the library: the command line, runs, data, comparisons, reports."""
