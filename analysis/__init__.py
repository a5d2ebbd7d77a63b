"""What came out: frontier, tables, figures, report."""
