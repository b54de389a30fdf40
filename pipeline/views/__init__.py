"""What people read of a run: the terminal's tables, Markdown, and pages that need no network."""
