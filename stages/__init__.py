"""The stages: each turns an artifact into a smaller or better one."""
