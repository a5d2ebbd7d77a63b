"""What a trial costs, known before it is spent."""
