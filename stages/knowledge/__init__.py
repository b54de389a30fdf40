"""What a student can learn from a teacher."""
