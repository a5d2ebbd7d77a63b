"""Costs of a trial: FLOPs and memory, known before they are spent, and the bill of what was."""
