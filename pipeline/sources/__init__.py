"""The data sources, one file each: a subclass of `DataSource`, found by its module's name."""
