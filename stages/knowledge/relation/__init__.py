"""Knowledge in how samples, layers or channels relate to each other."""
