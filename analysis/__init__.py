"""The results of a sweep: frontier, tables, figures, report."""
