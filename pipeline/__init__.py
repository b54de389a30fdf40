"""What happens in which order: recipes, runs, their folders and reports."""
