"""Training: the recipe, the examples, a readable loop, and what Ray Train runs."""
