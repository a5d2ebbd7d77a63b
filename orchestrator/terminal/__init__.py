"""The sweep as a terminal shows it."""
