"""Knowledge in the teacher's outputs."""
