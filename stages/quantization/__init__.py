"""Where quantizers go, and how their grids are found."""
