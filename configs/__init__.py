"""The experiments that come with the package, one a file; installed they are wsol_jax.configs."""
