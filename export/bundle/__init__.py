"""A folder to deploy: an engine with what is known of it, an example that runs it, and a repository for Triton."""
