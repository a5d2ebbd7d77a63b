"""Where trials run: Ray, and what each trial takes of it."""
