"""Tables of Hugging Face's package `datasets`: opened from files or the hub, and what their columns hold."""
