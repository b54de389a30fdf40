"""Knowledge in the teacher's feature maps."""
