"""Section 2 of the method: recipes, augmentation, and the trainer."""
