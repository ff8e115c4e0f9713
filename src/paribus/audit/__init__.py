"""Two finished runs compared, and one run made again from its record."""
