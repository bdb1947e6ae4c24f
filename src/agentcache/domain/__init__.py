"""The pure core: what is remembered, who holds memory, what runs next. No I/O, no clock."""
