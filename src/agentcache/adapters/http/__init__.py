"""The HTTP edge: thin Starlette endpoints, one module a dialect."""
