"""What is done with a map once it exists; the host part needs no JAX."""

Key = tuple[str, str]  # (method, layer), by which maps go
