"""Published experiments: TOML recipes and the programs that prepare their data."""
