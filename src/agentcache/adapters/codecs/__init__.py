"""Encodings of rows, in numpy: any thread may run them."""
