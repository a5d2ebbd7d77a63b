"""The search space of each method, under the name of its file in `trainables/methods`."""
